// The gradient of the logits of tile after tile of one image, and its sums with the features while they are on chip.
//
// A tile takes the chunks of x first, for the logits and the gradient that comes from the sums, then those of grad_y,
// for the one that comes from the reconstruction.
#include "../device/pipeline.h"
#include "../device/row_block.h"
#include "../hopper/hopper.h"
#include "kernels.h"

namespace ema {
namespace {

struct Args {
  EStepGradient io;
  EStepPlan plan;
  int heads, positions, num_bases;
};

template <class Math, bool POSITIONS_FASTEST, class Block, bool FUSED>
__global__ void __launch_bounds__(Block::THREADS, 1) e_step_gradient_kernel(const __grid_constant__ Args args) {
  using Word = typename Math::Word;
  using Chunk = FeatureChunk<Math, POSITIONS_FASTEST>;
  constexpr int BLOCKS = Block::BLOCKS, ROW_BYTES = Block::BASES * CHUNK_BYTES;
  const EStepGradient& io = args.io;
  const EStepPlan& plan = args.plan;
  // only what passes the M-step of its tile to the next kernel is fused: never the iteration before the reconstruction
  const bool has_sums = FUSED || io.sums_rows != nullptr, has_values = !FUSED && io.value_rows != nullptr;
  EMA_SHARED(shared);
  wait_for_predecessors();
  unsigned char* row_memory = shared + plan.feature_slots * Chunk::BYTES;
  const int row_slot = has_sums ? 2 * ROW_BYTES : ROW_BYTES;
  const Tile<uint16_t, 64> tile_memory{row_memory + plan.row_slots * row_slot};
  float* statistics = reinterpret_cast<float*>(tile_memory.memory + (FUSED ? TILE * CHUNK_BYTES : 0));
  Masses<Block> masses(statistics + Block::STATISTICS);

  const int image = blockIdx.x / plan.splits;
  const int padded = padded_bases(args.num_bases), width = padded_channels(io.x.channels);
  const int x_chunks = (io.x.channels + Math::CHUNK - 1) / Math::CHUNK;
  const int chunks = x_chunks + (has_values ? (io.grad_y.channels + Math::CHUNK - 1) / Math::CHUNK : 0);
  const TileRange tiles(args.positions, plan.splits, blockIdx.x % plan.splits);
  auto feature_tile = [&](int chunk) {
    return typename Chunk::Shape{shared + chunk % plan.feature_slots * Chunk::BYTES};
  };
  auto row_tile = [&](int chunk, int which) {
    return Tile<Word, Math::CHUNK>{row_memory + chunk % plan.row_slots * row_slot + which * ROW_BYTES};
  };
  auto load_chunk = [&](int i) {
    const int position = (tiles.begin + i / chunks) * TILE, chunk = i % chunks;
    const bool from_x = chunk < x_chunks;
    const int channel = (from_x ? chunk : chunk - x_chunks) * Math::CHUNK;
    const Features& features = from_x ? io.x : io.grad_y;
    const auto matrix = image_of<Word, POSITIONS_FASTEST>(features, image, args.heads, args.positions);
    Chunk::load(feature_tile(i), matrix, position, channel);
    if (!plan.rows_resident || i < chunks) {
      const int slot = plan.rows_resident ? chunk : i, columns = padded_channels(features.channels);
      const Rows<Word> rows(from_x ? io.logit_rows : io.value_rows, image, padded, columns);
      rows.load(row_tile(slot, 0), channel);
      if (from_x && has_sums) Rows<Word>(io.sums_rows, image, padded, columns).load(row_tile(slot, 1), channel);
    }
  };

  const Block block(args.num_bases);
  Pipeline pipeline(tiles.count() * chunks);
  float sums[FUSED ? 4 : 1][8][4] = {};
  for (int tile = 0; tile * chunks < pipeline.total; ++tile) {
    const int position = (tiles.begin + tile) * TILE + block.row + lane() / 4;
    float z[1][BLOCKS][4] = {}, grad[1][BLOCKS][4] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int i = tile * chunks + chunk;
      const int feature_limit = (FUSED ? tile * chunks : i) + plan.feature_slots;
      const int limit = plan.rows_resident ? feature_limit : min(feature_limit, i + plan.row_slots);
      pipeline.advance(i, limit, load_chunk);
      const int slot = plan.rows_resident ? chunk : i;
      const bool from_x = chunk < x_chunks;
      if (from_x)
        multiply_tiles<Math, POSITIONS_FASTEST, false, Math::CHUNK>(z, feature_tile(i), block.row, row_tile(slot, 0),
                                                                    block.column, block.blocks);
      if (!from_x || has_sums)
        multiply_tiles<Math, POSITIONS_FASTEST, false, Math::CHUNK>(grad, feature_tile(i), block.row,
                                                                    row_tile(slot, from_x), block.column, block.blocks);
      if (has_sums && chunk == x_chunks - 1) {
        // what comes from the sums is complete: only it is weighted
        float weights[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weights[half] = position_weight(io.weight, image, args.heads, position + 8 * half, args.positions);
        block.for_bases(io.powers + static_cast<int64_t>(image) * padded, [&](int j, int e, float power) {
          grad[0][j][e] *= power, grad[0][j][e + 2] *= power;
        });
        block.for_bases(io.grad_mass + static_cast<int64_t>(image) * padded, [&](int j, int e, float grad_mass) {
          grad[0][j][e] = weights[0] * (grad[0][j][e] + grad_mass);
          grad[0][j][e + 2] = weights[1] * (grad[0][j][e + 2] + grad_mass);
        });
      }
    }
    if (io.logit_bias != nullptr) block.add_bias(z[0], io.logit_bias + static_cast<int64_t>(image) * args.num_bases);
    softmax<Math>(z[0], block, 1.f, statistics);

    float along[2] = {};
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) along[e / 2] += z[0][j][e] * grad[0][j][e];
    combine_rows(along, block, statistics, [](float a, float b) { return a + b; });
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        bool inside = position + e / 2 * 8 < args.positions && block.base(j, e) < args.num_bases;
        grad[0][j][e] = inside ? z[0][j][e] * (grad[0][j][e] - along[e / 2]) : 0.f;
      }
    block.template store<Math>(grad[0], io.grad_logits, image, position, args.positions, padded);
    if (io.responsibilities != nullptr) {
      if (has_sums) {
        float weights[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weights[half] = position_weight(io.weight, image, args.heads, position + 8 * half, args.positions);
        block.for_bases(io.powers + static_cast<int64_t>(image) * padded, [&](int j, int e, float power) {
          z[0][j][e] *= weights[0] * power, z[0][j][e + 2] *= weights[1] * power;
        });
      } else {
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) z[0][j][e] *= RESPONSIBILITY_SCALE;
      }
      block.template store<Math>(z[0], io.responsibilities, image, position, args.positions, padded);
    }
    // here the responsibilities need no registers any more
    masses.add(grad[0], block);
    if constexpr (FUSED) {
      block.template store_tile<Math>(grad[0], tile_memory);
      __syncthreads();
      if (warp() < x_chunks)
        multiply_tiles<Math, true, !POSITIONS_FASTEST, TILE>(sums, tile_memory, 0,
                                                             feature_tile(tile * chunks + warp()), 0, 8);
    }
  }
  const int64_t slot = blockIdx.x;
  if constexpr (FUSED)
    if (warp() < x_chunks) store_sums(sums, io.sums + slot * padded * width, width, 0, warp() * 64);
  masses.store(io.masses + slot * padded, padded);
}

}  // namespace

cudaError_t e_step_gradient(const Problem& problem, const EStepPlan& plan, const EStepGradient& io,
                            cudaStream_t stream) {
  if (plan.hopper) return hopper::e_step_gradient(problem, plan, io, stream);
  const Args args{io, plan, problem.heads, problem.positions, problem.num_bases};
  return with_variant(problem, plan, [&](auto variant) {
    using V = decltype(variant);
    auto kernel = e_step_gradient_kernel<typename V::Math, V::POSITIONS_FASTEST, typename V::Block, V::FUSED>;
    const dim3 grid(problem.images() * plan.splits), block(V::Block::THREADS);
    return launch(kernel, grid, block, plan.shared_memory, stream, args);
  });
}

}  // namespace ema
