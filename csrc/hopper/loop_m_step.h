// The other two warpgroups of the loop, each with one half of the channels: copies, sums of the M-step, and new bases.
#pragma once
#include "../device/half_slot.h"
#include "loop_sums.h"

#if EMA_HOPPER
namespace ema::hopper {

template <class Shape>
class LoopMStep {
  using Math = typename Shape::Math;
  static constexpr int HALF = Shape::HALF, STAGES = Shape::STAGES, HALF_PANELS = Shape::PANELS / 2;
  static constexpr int PREFETCHED = Shape::BASES_STAGE;

 public:
  EMA_DEVICE LoopMStep(const LoopBlock<Shape>& block, const LoopArgs& args, const LoopMaps& maps, int half)
      : block_(block), args_(args), maps_(maps), half_(half), row_(warp() % 4 * 16 + lane() / 4),
        loads_(threadIdx.x % 128 == 0), leads_(loads_ && half == 0) {}

  EMA_DEVICE void run() {
    if (leads_) {
      arrive_expecting(block_.bases_full, 64 * Shape::WIDTH * 2);
      load_bases(maps_.first_rows, block_.head, block_.batch);
    }
    if (loads_) prefetch(0);
#pragma unroll 1
    for (int t = 0; t < args_.num_iters; ++t) {
      if (loads_) load_first(t);
      __syncwarp();
      sum(t);
      fence_copies();
      meet_cluster();
      LoopSums<Shape>(block_, args_, half_ * 4 + warp() % 4).run(t);
      fence_copies_of_memory();  // the bases were written before the copies that follow
      meet(BOTH_HALVES_MEET, 256);
      if (leads_) {
        fence_copies_of_memory();
        load_bases(maps_.rows, 0, blockIdx.x / args_.plan.cluster);
      }
      __syncwarp();
    }
  }

 private:
  // My half of the channels of the tile that is number i of iteration t.
  EMA_DEVICE void load(int t, int i) const {
    const int slot = i % STAGES, position = block_.first + block_.tile(i, t, args_.num_iters) * LOOP_TILE;
    arrive_expecting(&block_.stage_full[slot], Shape::STAGE_BYTES / 2);
    for (int p = half_ * HALF_PANELS; p < (half_ + 1) * HALF_PANELS; ++p)
      block_.features(slot).copy(p, maps_.x, &block_.stage_full[slot], position, block_.head, block_.batch);
  }
  EMA_DEVICE void load(int t, int begin, int end) const {
    for (int i = begin; i < min(end, block_.tiles); ++i) load(t, i);
  }
  EMA_DEVICE void prefetch(int t) const { load(t, 0, PREFETCHED); }

  // The bases that this block has made to all blocks of the cluster.
  EMA_DEVICE void load_bases(const TensorMap& rows, int head, int batch) const {
    const int count = 64 / args_.plan.cluster, base = block_.rank * count;
    const uint16_t all = static_cast<uint16_t>((1u << args_.plan.cluster) - 1);
    for (int p = 0; p < Shape::PANELS; ++p) {
      unsigned char* memory = block_.bases() + p * WIDE_PANEL + base * CHUNK_BYTES;
      if (args_.plan.cluster > 1)
        copy_box_to(all, memory, rows, block_.bases_full, 64 * p, base, head, batch);
      else  // launched without a cluster
        copy_box(memory, rows, block_.bases_full, 64 * p, base, head, batch);
    }
  }

  // The stages that sums and bases took. All bases are here once nobody reads the sums of this block; then its barrier
  // is set up for the next ones, before the meeting of the cluster that lets them be made.
  EMA_DEVICE void load_first(int t) const {
    wait(block_.bases_full, t & 1);
    load(t, Shape::SUM_STAGE, STAGES);
    if (leads_) arrive_expecting(block_.bases_full, 64 * Shape::WIDTH * 2);
    wait(block_.bases_taken, t & 1);
    load(t, Shape::BASES_STAGE, Shape::SUM_STAGE);
  }

  // The sums over the positions of this block, staged.
  EMA_DEVICE void sum(int t) {
    float v[HALF / 2];
#pragma unroll
    for (int i = 0; i < HALF / 2; ++i) v[i] = 0;
#pragma unroll 1
    for (int i = 0; i < block_.tiles; ++i) {
      const int slot = i % STAGES;
      full_.wait_for(block_.stage_full, block_.z_full, slot);
      begin_products();
      block_.features(slot).template add_sums<HALF, true>(v, block_.z_pair(slot / 2) + slot % 2 * LOOP_TILE * 2,
                                                          half_ * HALF_PANELS);
      commit_products();
      wait_for_products<1>();  // those of the tile before
      if (i > 0 && i - 1 + STAGES < block_.tiles) {
        meet(HALF_MEETS + half_, 128);
        if (loads_) load(t, i - 1 + STAGES);
        __syncwarp();
      }
    }
    wait_for_products<0>();
    settle(v);
    meet(BOTH_HALVES_MEET, 256);  // nobody of this block reads features any more
    if (loads_ && t + 1 < args_.num_iters) prefetch(t + 1);
    __syncwarp();
    stage_sums(v);
  }

  // As float16, every base of a half with a power of two for itself: half the bytes, and nothing leaves the range.
  EMA_DEVICE void stage_sums(const float (&v)[HALF / 2]) const {
    const auto sums = block_.sums();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = 0;
#pragma unroll
      for (int j = 0; j < HALF / 8; ++j)
        largest = fmaxf(largest, fmaxf(fabsf(v[4 * j + 2 * e]), fabsf(v[4 * j + 2 * e + 1])));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const float power = half_power(largest), factor = inverse_power(power);
      const int row = row_ + 8 * e;
      if (lane() % 4 == 0) block_.factors[half_ * 64 + row] = power;
#pragma unroll
      for (int j = 0; j < HALF / 8; ++j) {
        // opaque: eight addresses kept would be registers too many
        *reinterpret_cast<uint32_t*>(sums.at(opaque(row), half_ * HALF + 8 * j + lane() % 4 * 2)) =
            half_pair(factor * v[4 * j + 2 * e], factor * v[4 * j + 2 * e + 1]);
      }
    }
  }

  const LoopBlock<Shape>& block_;
  const LoopArgs& args_;
  const LoopMaps& maps_;
  int half_, row_;
  bool loads_, leads_;
  Parities full_;
};

}  // namespace ema::hopper
#endif
