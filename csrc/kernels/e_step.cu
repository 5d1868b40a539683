// E-step: responsibilities of tile after tile of one image, and the M-step of the tile while it is on chip.
#include "../device/pipeline.h"
#include "../device/row_block.h"
#include "../hopper/hopper.h"
#include "kernels.h"

namespace ema {
namespace {

struct Args {
  EStep io;
  EStepPlan plan;
  int heads, positions, num_bases;
};

template <class Math, bool POSITIONS_FASTEST, class Block, bool FUSED>
__global__ void __launch_bounds__(Block::THREADS, 1) e_step_kernel(const Args args) {
  using Word = typename Math::Word;
  using Chunk = FeatureChunk<Math, POSITIONS_FASTEST>;
  constexpr int BLOCKS = Block::BLOCKS, ROW_BYTES = Block::BASES * CHUNK_BYTES;
  const EStep& io = args.io;
  const EStepPlan& plan = args.plan;
  EMA_SHARED(shared);
  wait_for_predecessors();
  unsigned char* row_memory = shared + plan.feature_slots * Chunk::BYTES;
  const Tile<uint16_t, 64> z_tile{row_memory + plan.row_slots * ROW_BYTES};
  float* statistics = reinterpret_cast<float*>(z_tile.memory + (FUSED ? TILE * CHUNK_BYTES : 0));
  Masses<Block> masses(statistics + Block::STATISTICS);

  const int image = blockIdx.x / plan.splits;
  const int padded = padded_bases(args.num_bases), width = padded_channels(io.x.channels);
  const int chunks = (io.x.channels + Math::CHUNK - 1) / Math::CHUNK;
  const TileRange tiles(args.positions, plan.splits, blockIdx.x % plan.splits);
  const auto x = image_of<Word, POSITIONS_FASTEST>(io.x, image, args.heads, args.positions);
  const Rows<Word> logit_rows(io.logit_rows, image, padded, width);
  auto feature_tile = [&](int chunk) {
    return typename Chunk::Shape{shared + chunk % plan.feature_slots * Chunk::BYTES};
  };
  auto row_tile = [&](int chunk) {
    return Tile<Word, Math::CHUNK>{row_memory + chunk % plan.row_slots * ROW_BYTES};
  };
  auto load_chunk = [&](int i) {
    int tile = tiles.begin + i / chunks, chunk = i % chunks;
    Chunk::load(feature_tile(i), x, tile * TILE, chunk * Math::CHUNK);
    if (!plan.rows_resident || i < chunks)
      logit_rows.load(row_tile(plan.rows_resident ? chunk : i), chunk * Math::CHUNK);
  };

  const Block block(args.num_bases);
  const float weight_unit = 1.f / weight_power(io.weight_maxima, image);
  Pipeline pipeline(tiles.count() * chunks);
  float sums[FUSED ? 4 : 1][8][4] = {};
  for (int tile = 0; tile < tiles.count(); ++tile) {
    float z[1][BLOCKS][4] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int i = tile * chunks + chunk;
      const int feature_limit = (FUSED ? tile * chunks : i) + plan.feature_slots;
      const int limit = plan.rows_resident ? feature_limit : min(feature_limit, i + plan.row_slots);
      pipeline.advance(i, limit, load_chunk);
      multiply_tiles<Math, POSITIONS_FASTEST, false, Math::CHUNK>(
          z, feature_tile(i), block.row, row_tile(plan.rows_resident ? chunk : i), block.column, block.blocks);
    }
    const int position = (tiles.begin + tile) * TILE + block.row + lane() / 4;
    if (io.logit_bias != nullptr) block.add_bias(z[0], io.logit_bias + static_cast<int64_t>(image) * args.num_bases);
    softmax<Math>(z[0], block, RESPONSIBILITY_SCALE, statistics);

    float weights[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weights[half] =
          weight_unit * position_weight(io.weight, image, args.heads, position + 8 * half, args.positions);
    if (io.responsibilities != nullptr)
      block.template store<Math>(z[0], io.responsibilities, image, position, args.positions, padded);
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // a position beyond the last has features 0 and some responsibilities all the same
        z[0][j][e] = position + e / 2 * 8 < args.positions ? z[0][j][e] * weights[e / 2] : 0.f;
      }
    masses.add(z[0], block);
    if (io.weighted_responsibilities != nullptr)
      block.template store<Math>(z[0], io.weighted_responsibilities, image, position, args.positions, padded);
    if constexpr (FUSED) {
      block.template store_tile<Math>(z[0], z_tile);
      __syncthreads();
      if (warp() < chunks)
        multiply_tiles<Math, true, !POSITIONS_FASTEST, TILE>(sums, z_tile, 0, feature_tile(tile * chunks + warp()), 0,
                                                             8);
    }
  }
  const int64_t slot = blockIdx.x;
  if constexpr (FUSED)
    if (warp() < chunks) store_sums(sums, io.sums + slot * padded * width, width, 0, warp() * 64);
  masses.store(io.masses + slot * padded, padded);
}

}  // namespace

cudaError_t e_step(const Problem& problem, const EStepPlan& plan, const EStep& io, cudaStream_t stream) {
  if (plan.hopper) return hopper::e_step(problem, plan, io, stream);
  const Args args{io, plan, problem.heads, problem.positions, problem.num_bases};
  return with_variant(problem, plan, [&](auto variant) {
    using V = decltype(variant);
    auto kernel = e_step_kernel<typename V::Math, V::POSITIONS_FASTEST, typename V::Block, V::FUSED>;
    const dim3 grid(problem.images() * plan.splits), block(V::Block::THREADS);
    return launch(kernel, grid, block, plan.shared_memory, stream, args);
  });
}

}  // namespace ema
