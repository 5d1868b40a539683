// The first warpgroup of the loop: responsibilities of tile after tile, transposed, with the bases in its registers.
//
// A thread has of [64 bases, 32 positions] the bases row and row + 8 of positions 8 j + 2 t and + 1: z[4 j + 2 half + e].
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
        unit_(RESPONSIBILITY_SCALE / weight_power(args.io.weight_maxima, block.image)) {}

  EMA_DEVICE void run() {
    Parities stage;
#pragma unroll 1
    for (int t = 0; t < args_.num_iters; ++t) {
      const bool is_last = t == args_.num_iters - 1;
      uint32_t bases[Shape::WIDTH / 16][4];
      wait(block_.bases_full, t & 1);
      load(bases);
      arrive(block_.bases_taken);
      float mass[2] = {};
#pragma unroll 1
      for (int i = 0; i < block_.tiles; ++i) {
        const int slot = i % Shape::STAGES, start = block_.tile(i, t, args_.num_iters) * LOOP_TILE;
        const float weight = weight_of(start + lane());
        stage.wait_for(block_.stage_full, slot);
        float z[COUNT];
        multiply(z, bases, block_.stage(slot));
        // a tile is handed over after the products of the next one: its own run beside the softmax that follows
        if (i > 0) arrive(&block_.z_full[(i - 1) % Shape::STAGES]);
        softmax(z);
        if (is_last) {
          store(z, RESPONSIBILITY_SCALE, Tile<uint16_t, 64>{block_.stored_pair(args_, i / 2)}, i % 2 * LOOP_TILE);
        }
        weigh(z, weight, block_.positions - start, mass);
        store(z, 1.f, Tile<uint16_t, 64>{block_.z_pair(slot / 2)}, slot % 2 * LOOP_TILE);
        fence_copies();
      }
      if (block_.tiles > 0) arrive(&block_.z_full[(block_.tiles - 1) % Shape::STAGES]);
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

  EMA_DEVICE static void multiply(float (&z)[COUNT], const uint32_t (&bases)[Shape::WIDTH / 16][4],
                                  const unsigned char* features) {
    const Operand x = make_operand(features, 0, 8 * CHUNK_BYTES);
    begin_products();
#pragma unroll
    for (int k = 0; k < Shape::WIDTH / 16; ++k)
      multiply_group<Math::DTYPE, LOOP_TILE, false>(z, bases[k],
                                                    moved(x, k / 4 * LOOP_TILE * CHUNK_BYTES + k % 4 * 32), k > 0);
    commit_products();
    wait_for_products<0>();
    settle(z);
  }

  // Divided by the power of two near the largest one, times RESPONSIBILITY_SCALE.
  EMA_DEVICE float weight_of(int position) const {
    if (args_.io.weight.data == nullptr) return unit_;
    return unit_ * position_weight(args_.io.weight, block_.image, args_.heads, block_.first + position, args_.positions);
  }

  // Over the bases: those of a thread, of a warp, and of the four warps.
  template <class Combine>
  EMA_DEVICE void combine(float (&values)[COUNT / 2], float* memory, Combine combine) const {
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c) {
      for (int other = 4; other < 32; other *= 2) values[c] = combine(values[c], __shfl_xor_sync(~0u, values[c], other));
      if (lane() < 4) memory[(c / 2 * 8 + column_ + c % 2) * 4 + warp()] = values[c];
    }
    meet(E_STEP_MEETS, 128);
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c) {
      const float4 of_warps = *reinterpret_cast<const float4*>(memory + (c / 2 * 8 + column_ + c % 2) * 4);
      values[c] = combine(combine(of_warps.x, of_warps.y), combine(of_warps.z, of_warps.w));
    }
  }

  EMA_DEVICE void softmax(float (&z)[COUNT]) const {
    const bool exists[2] = {row_ < args_.num_bases, row_ + 8 < args_.num_bases};
    float values[COUNT / 2];
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c)
      values[c] = fmaxf(exists[0] ? first(z, c) : -INFINITY, exists[1] ? second(z, c) : -INFINITY);
    combine(values, block_.maxima, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c) {
      first(z, c) = exists[0] ? Math::exponential(first(z, c) - values[c]) : 0.f;
      second(z, c) = exists[1] ? Math::exponential(second(z, c) - values[c]) : 0.f;
      values[c] = first(z, c) + second(z, c);
    }
    combine(values, block_.totals, [](float a, float b) { return a + b; });
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c) {
      const float factor = 1.f / values[c];
      first(z, c) *= factor;
      second(z, c) *= factor;
    }
  }

  // `weight` is that of the position of this lane; positions from `left` on belong to another block or to nobody.
  EMA_DEVICE void weigh(float (&z)[COUNT], float weight, int left, float (&mass)[2]) const {
#pragma unroll
    for (int c = 0; c < COUNT / 2; ++c) {
      const int position = c / 2 * 8 + column_ + c % 2;
      const float factor = args_.io.weight.data == nullptr ? weight : __shfl_sync(~0u, weight, position);
      first(z, c) = position < left ? first(z, c) * factor : 0.f;
      second(z, c) = position < left ? second(z, c) * factor : 0.f;
      mass[0] += first(z, c);
      mass[1] += second(z, c);
    }
  }

  EMA_DEVICE void store(const float (&z)[COUNT], float factor, const Tile<uint16_t, 64>& tile, int column) const {
#pragma unroll
    for (int j = 0; j < LOOP_TILE / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint32_t*>(tile.at(row_ + 8 * half, column + 8 * j + column_)) =
            round_pair<Math>(Math::saturate(factor * z[4 * j + 2 * half]), Math::saturate(factor * z[4 * j + 2 * half + 1]));
  }

  // Of position number c of a thread: base row, and row + 8.
  EMA_DEVICE static float& first(float (&z)[COUNT], int c) { return z[c / 2 * 4 + c % 2]; }
  EMA_DEVICE static float& second(float (&z)[COUNT], int c) { return z[c / 2 * 4 + 2 + c % 2]; }

  const LoopBlock<Shape>& block_;
  const LoopArgs& args_;
  int row_, column_;
  float unit_;
};

}  // namespace ema::hopper
#endif
