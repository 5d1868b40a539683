// The reconstruction and the gradient of the features: products of rank K, added up and written once.
#include "../device/chunks.h"
#include "../device/pipeline.h"
#include "../hopper/hopper.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256;

constexpr int ROWS = 64, COLUMNS = 128, SLOTS = 2;  // of the tile of a block, as it lies in memory

struct Args {
  const void* left;
  const void* right;
  Features out;
  int products, images, heads, positions, num_bases;
  float factor;
  bool saturate;
};

// Loads of both operands of a tile and their product, for either memory order: [positions, channels] is left times
// right, [channels, positions] is right^T times left^T.
template <class Math, bool POSITIONS_FASTEST>
struct Operands {
  using Word = typename Math::Word;
  using Left = Tile<Word, Math::CHUNK>;
  using Right = Tile<Word, POSITIONS_FASTEST ? ROWS : COLUMNS>;
  static constexpr int LEFT_ROWS = POSITIONS_FASTEST ? COLUMNS : ROWS;
  static constexpr int LEFT_BYTES = LEFT_ROWS * CHUNK_BYTES, BYTES = (ROWS + COLUMNS) * CHUNK_BYTES;

  EMA_DEVICE static void load(unsigned char* memory, const Matrix<Word>& left, const Matrix<Word>& right, int inner,
                              int position, int channel) {
    load_tile(Left{memory}, LEFT_ROWS, left, position, inner);
    load_tile(Right{memory + LEFT_BYTES}, Math::CHUNK, right, inner, channel);
  }
  EMA_DEVICE static void multiply(float (&acc)[1][8][4], unsigned char* memory, int row, int column) {
    Left left{memory};
    Right right{memory + LEFT_BYTES};
    if constexpr (POSITIONS_FASTEST)
      multiply_tiles<Math, true, false, Math::CHUNK>(acc, right, row, left, column, 8);
    else
      multiply_tiles<Math, false, true, Math::CHUNK>(acc, left, row, right, column, 8);
  }
};

template <class Math, bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(THREADS, 1) rank_k_products_kernel(const Args args) {
  using Word = typename Math::Word;
  using Both = Operands<Math, POSITIONS_FASTEST>;
  EMA_SHARED(shared);
  wait_for_predecessors();
  const int padded = padded_bases(args.num_bases), width = padded_channels(args.out.channels);
  const auto out = image_of<Word, POSITIONS_FASTEST>(args.out, 0, args.heads, args.positions);
  const int row_tiles = (out.rows - 1) / ROWS + 1, column_tiles = (out.columns - 1) / COLUMNS + 1;
  // neighbouring blocks share the larger operand, the left one
  const int channel_tiles = POSITIONS_FASTEST ? row_tiles : column_tiles;
  const int position_tiles = POSITIONS_FASTEST ? column_tiles : row_tiles;
  const int channel = blockIdx.x % channel_tiles * (POSITIONS_FASTEST ? ROWS : COLUMNS);
  const int position = blockIdx.x / channel_tiles % position_tiles * (POSITIONS_FASTEST ? COLUMNS : ROWS);
  const int image = blockIdx.x / channel_tiles / position_tiles;

  const int steps = padded / Math::CHUNK;
  auto load_step = [&](int step) {
    int64_t pair = static_cast<int64_t>(step / steps) * args.images + image;
    auto* lefts = static_cast<Word*>(const_cast<void*>(args.left));
    auto* rights = static_cast<Word*>(const_cast<void*>(args.right));
    const Matrix<Word> left(lefts + pair * args.positions * padded, padded, args.positions, padded);
    const Matrix<Word> right(rights + pair * padded * width, width, padded, width);
    Both::load(shared + step % SLOTS * Both::BYTES, left, right, step % steps * Math::CHUNK, position, channel);
  };
  const int row = warp() / 2 * 16, column = warp() % 2 * 64;
  float acc[1][8][4] = {};
  Pipeline pipeline(args.products * steps);
  for (int step = 0; step < pipeline.total; ++step) {
    pipeline.advance(step, step + SLOTS, load_step);
    Both::multiply(acc, shared + step % SLOTS * Both::BYTES, row, column);
  }

  __syncthreads();
  Tile<Word, COLUMNS> tile{shared};
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float value = args.factor * acc[0][j][e];
      if (args.saturate) value = Math::saturate(value);
      *tile.at(row + lane() / 4 + e / 2 * 8, column + 8 * j + lane() % 4 * 2 + e % 2) = Math::round(value);
    }
  __syncthreads();
  write_tile(tile, ROWS, image_of<Word, POSITIONS_FASTEST>(args.out, image, args.heads, args.positions),
             POSITIONS_FASTEST ? channel : position, POSITIONS_FASTEST ? position : channel);
}

}  // namespace

cudaError_t rank_k_products(const Problem& problem, const ProductsPlan& plan, int products, const void* left,
                            const void* right, float factor, const Features& out, bool saturate, cudaStream_t stream) {
  if (plan.hopper) return hopper::rank_k_products(problem, plan, products, left, right, factor, out, saturate, stream);
  const bool columns = problem.positions_fastest;
  int position_tiles = (problem.positions - 1) / (columns ? COLUMNS : ROWS) + 1;
  int channel_tiles = (out.channels - 1) / (columns ? ROWS : COLUMNS) + 1;
  dim3 grid(problem.images() * position_tiles * channel_tiles);
  Args args{left,          right,          out,
            products,      problem.images(), problem.heads,
            problem.positions, problem.num_bases, factor,
            saturate};
  return with_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = columns ? rank_k_products_kernel<Math, true> : rank_k_products_kernel<Math, false>;
    return launch(kernel, grid, dim3(THREADS), SLOTS * Operands<Math, true>::BYTES, stream, args);
  });
}

}  // namespace ema
