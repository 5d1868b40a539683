// The end of the unit: reconstruction, ReLU, second convolution, residual and ReLU of a tile, written once.
#include "../device/chunks.h"
#include "../device/pipeline.h"
#include "../hopper/hopper.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256;

struct Args {
  UnitTail io;
  int heads, positions, num_bases, slots;
};

// ReLU that lets NaN through.
EMA_DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }

// A block has a tile of positions and OUTPUTS channels of y: 8 warps, each 16 ROWS positions by 8 BLOCKS channels. It
// makes R chunk after chunk from the value rows, and multiplies each with that of the weight.
template <class Math, bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(THREADS, 2) unit_tail_kernel(const Args args) {
  using Word = typename Math::Word;
  using Chunk = Tile<Word, Math::CHUNK>;
  constexpr int OUTPUTS = OUTPUT_BYTES / static_cast<int>(sizeof(Word)), ROWS = sizeof(Word) == 2 ? 4 : 1;
  constexpr int ACROSS = 2 * ROWS, BLOCKS = OUTPUTS / 8 / ACROSS;
  constexpr int CHUNK_TILE_BYTES = TILE * CHUNK_BYTES, SLOT_BYTES = OUTPUTS * CHUNK_BYTES;
  constexpr int PIECE_BASES = OUTPUTS;  // as many as a slot holds
  constexpr bool ONE_PIECE = PIECE_BASES >= MAX_BASES;
  EMA_SHARED(shared);
  wait_for_predecessors();
  const UnitTail& io = args.io;
  const int channels = io.x.channels, padded = padded_bases(args.num_bases), width = padded_channels(channels);
  const int groups = (channels - 1) / OUTPUTS + 1, tiles = (args.positions - 1) / TILE + 1;
  const int output = blockIdx.x % groups * OUTPUTS, position = blockIdx.x / groups % tiles * TILE;
  const int image = blockIdx.x / groups / tiles;

  const Matrix<Word> weight(static_cast<Word*>(const_cast<void*>(io.convolution.weight)), channels, channels, channels);
  const Word* value_rows = static_cast<const Word*>(io.value_rows) + static_cast<int64_t>(image) * padded * width;

  auto z_tile = [&](int base) { return Chunk{shared + base / Math::CHUNK * CHUNK_TILE_BYTES}; };
  const Chunk r_tile = z_tile(padded);
  unsigned char* const slots = r_tile.memory + CHUNK_TILE_BYTES;
  auto slot = [&](int piece) { return slots + piece % args.slots * SLOT_BYTES; };
  // of every chunk: value rows of some bases, and behind them the weight
  const int pieces = ONE_PIECE ? 2 : (padded - 1) / PIECE_BASES + 2;
  auto load_piece = [&](int i) {
    const int inner = i / pieces * Math::CHUNK, base = i % pieces * PIECE_BASES;
    if (i % pieces < pieces - 1)
      load_aligned_tile(Chunk{slot(i)}, ONE_PIECE ? padded : min(PIECE_BASES, padded - base),
                        value_rows + base * width + inner, width);
    else
      load_tile(Chunk{slot(i)}, OUTPUTS, weight, output, inner);
  };

  // these copies belong to the first piece
  auto* z = static_cast<Word*>(const_cast<void*>(io.responsibilities)) +
            static_cast<int64_t>(image) * args.positions * padded;
  for (int base = 0; base < padded; base += Math::CHUNK)
    load_tile(z_tile(base), TILE, Matrix<Word>(z, padded, args.positions, padded), position, base);

  const int row = warp() / ACROSS * 16 * ROWS, column = warp() % ACROSS * 8 * BLOCKS;
  const int r_row = warp() / 2 * 16, r_column = warp() % 2 * (Math::CHUNK / 2);
  const int blocks = min(BLOCKS, max(0, (channels - output - column + 7) / 8));
  float acc[ROWS][BLOCKS][4] = {};
  Pipeline pipeline(((channels - 1) / Math::CHUNK + 1) * pieces);
  for (int i = 0; i < pipeline.total; ++i) {
    float r[1][Math::CHUNK / 16][4] = {};
    pipeline.advance(i, i + args.slots, load_piece);
    for (int base = 0; base < padded; base += Math::CHUNK) {
      if (!ONE_PIECE && base > 0 && base % PIECE_BASES == 0) {
        ++i;
        pipeline.advance(i, i + args.slots, load_piece);
      }
      multiply_tiles<Math, false, true, Math::CHUNK>(
          r, z_tile(base), r_row, Chunk{slot(i) + base % PIECE_BASES * CHUNK_BYTES}, r_column, Math::CHUNK / 16);
    }
#pragma unroll
    for (int j = 0; j < Math::CHUNK / 16; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        *r_tile.at(r_row + lane() / 4 + e / 2 * 8, r_column + 8 * j + lane() % 4 * 2 + e % 2) =
            Math::round(relu(r[0][j][e] / RESPONSIBILITY_SCALE));
    ++i;
    pipeline.advance(i, i + args.slots, load_piece);
    multiply_tiles<Math, false, false, Math::CHUNK>(acc, r_tile, row, Chunk{slot(i)}, column, blocks);
  }

  // x comes to where y will leave from
  using Output = Tile<Word, POSITIONS_FASTEST ? TILE : OUTPUTS>;
  constexpr int OUTPUT_ROWS = POSITIONS_FASTEST ? OUTPUTS : TILE;
  const int first_row = POSITIONS_FASTEST ? output : position, first_column = POSITIONS_FASTEST ? position : output;
  const Output tile{shared};
  __syncthreads();
  load_tile(tile, OUTPUT_ROWS, image_of<Word, POSITIONS_FASTEST>(io.x, image, args.heads, args.positions), first_row,
            first_column);
  copy_async_commit();
  copy_async_wait(0);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = column + 8 * j + lane() % 4 * 2 + e;
      const float bias = output + c < channels ? io.convolution.bias[output + c] : 0.f;
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int n = row + 16 * i + lane() / 4 + 8 * half;
          Word* target = POSITIONS_FASTEST ? tile.at(c, n) : tile.at(n, c);
          *target = Math::round(relu(Math::widen(*target) + (acc[i][j][2 * half + e] + bias)));
        }
    }
  __syncthreads();
  write_tile(tile, OUTPUT_ROWS, image_of<Word, POSITIONS_FASTEST>(io.y, image, args.heads, args.positions), first_row,
             first_column);
}

}  // namespace

cudaError_t unit_tail(const Problem& problem, const UnitTailPlan& plan, const UnitTail& io, cudaStream_t stream) {
  if (plan.hopper) return hopper::unit_tail(problem, plan, io, stream);
  const int outputs = OUTPUT_BYTES / element_size(problem.dtype);
  const int tiles = (problem.positions - 1) / TILE + 1, groups = (problem.channels - 1) / outputs + 1;
  const dim3 grid(problem.images() * tiles * groups);
  const Args args{io, problem.heads, problem.positions, problem.num_bases, plan.slots};
  return with_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = problem.positions_fastest ? unit_tail_kernel<Math, true> : unit_tail_kernel<Math, false>;
    return launch(kernel, grid, dim3(THREADS), plan.shared_memory, stream, args);
  });
}

}  // namespace ema
