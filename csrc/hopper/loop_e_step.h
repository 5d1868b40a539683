// The first warpgroup of the loop: responsibilities of tile after tile, transposed, with the bases in its registers.
#pragma once
#include "loop_block.h"

#if EMA_HOPPER
namespace ema::hopper {

template <class Shape>
class LoopEStep {
  using Math = typename Shape::Math;
  static constexpr int COUNT = LOOP_TILE / 2;  // numbers of a thread

 public:
  EMA_DEVICE LoopEStep(const LoopBlock<Shape>& block, const LoopArgs& args)
      : block_(block), args_(args), row_(warp() * 16 + lane() / 4), column_(lane() % 4 * 2),
        unit_(1 / weight_power(args.io.weight_maxima, block.image)) {}

  EMA_DEVICE void run() {
    const bool real[2] = {row_ < args_.num_bases, row_ + 8 < args_.num_bases};
    Parities stage;
#pragma unroll 1
    for (int t = 0; t < args_.num_iters; ++t) {
      const bool is_last = t == args_.num_iters - 1;
      uint32_t bases[Shape::WIDTH / 16][4];
      wait(block_.bases_full, t & 1);
      load(bases);
      fence_copies();  // before boxes come over what was read
      arrive_as_warp(block_.bases_taken);
      float mass[2] = {};
#pragma unroll 1
      for (int i = 0; i < block_.tiles; ++i) {
        const int slot = i % Shape::STAGES, start = block_.tile(i, t, args_.num_iters) * LOOP_TILE;
        const float weight = weight_of(start + lane());
        stage.wait_for(block_.stage_full, slot);
        float z[COUNT];
#pragma unroll
        for (int e = 0; e < COUNT; ++e) z[e] = real[e / 2 % 2] ? 0.f : -INFINITY;
        begin_products();
        block_.features(slot).add_rows(z, bases);
        commit_products();
        wait_for_products<0>();
        settle(z);
        // a tile is handed over after the products of the next one: its own run beside the softmax that follows
        if (i > 0) arrive_as_warp(&block_.z_full[(i - 1) % Shape::STAGES]);
        respond_to<Math>(z, real, block_.maxima, block_.totals, E_STEP_MEETS);
        if (is_last) store(z, Tile<uint16_t, 64>{block_.stored_pair(args_, i / 2)}, i % 2 * LOOP_TILE);
        weigh(z, weight, mass);
        store(z, Tile<uint16_t, 64>{block_.z_pair(slot / 2)}, slot % 2 * LOOP_TILE);
        fence_copies();
      }
      if (block_.tiles > 0) arrive_as_warp(&block_.z_full[(block_.tiles - 1) % Shape::STAGES]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        for (int other = 1; other < 4; other *= 2) mass[half] += __shfl_xor_sync(~0u, mass[half], other);
        if (column_ == 0) block_.masses[row_ + 8 * half] = mass[half];
      }
      if (is_last) fence_copies_of_memory();  // the reconstruction copies the stored responsibilities
      __syncwarp();
      meet_cluster();
    }
  }

 private:
  EMA_DEVICE void load(uint32_t (&bases)[Shape::WIDTH / 16][4]) const {
#pragma unroll
    for (int k = 0; k < Shape::WIDTH / 16; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Tile<uint16_t, 64> panel{block_.bases() + k / 4 * 64 * CHUNK_BYTES};
        bases[k][e] = *reinterpret_cast<const uint32_t*>(panel.at(row_ + e % 2 * 8, k % 4 * 16 + e / 2 * 8 + column_));
      }
  }

  // That of the position of this lane, divided by the power of two near the largest one; 0 if the position belongs to
  // another block or to nobody.
  EMA_DEVICE float weight_of(int position) const {
    if (position >= block_.positions) return 0;
    return unit_ * position_weight(args_.io.weight, block_.image, args_.heads, block_.first + position, args_.positions);
  }

  EMA_DEVICE void store(const float (&z)[COUNT], const Tile<uint16_t, 64>& tile, int column) const {
#pragma unroll
    for (int j = 0; j < LOOP_TILE / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint32_t*>(tile.at(row_ + 8 * half, column + 8 * j + column_)) =
            saturate_pair<Math>(z[4 * j + 2 * half], z[4 * j + 2 * half + 1]);
  }

  const LoopBlock<Shape>& block_;
  const LoopArgs& args_;
  int row_, column_;
  float unit_;
};

}  // namespace ema::hopper
#endif
