// The other two warpgroups of the loop, each with one half of the channels: copies, sums of the M-step, new bases, and
// the reconstruction.
#pragma once
#include "../device/half_slot.h"
#include "loop_sums.h"

#if EMA_HOPPER
namespace ema::hopper {

template <class Shape>
class LoopMStep {
  using Math = typename Shape::Math;
  static constexpr bool POSITIONS_FASTEST = Shape::POSITIONS_FASTEST;
  static constexpr int HALF = Shape::HALF, STAGES = Shape::STAGES, HALF_PANELS = Shape::PANELS / 2;
  static constexpr int WIDE_PANEL = 64 * CHUNK_BYTES;  // 64 channels of 64 lines
  static constexpr int PARTS = POSITIONS_FASTEST ? HALF_PANELS : 1;  // of 64 positions of y: 64 channels, or all
  static constexpr int STEP = 8 * CHUNK_BYTES, PREFETCHED = Shape::BASES_STAGE, PAIRS = STAGES / 2;

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
    reconstruct();
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
    for (int p = 0; p < Shape::PANELS; ++p)
      copy_box_to(all, block_.bases() + p * WIDE_PANEL + base * CHUNK_BYTES, rows, block_.bases_full, 64 * p, base, head,
                  batch);
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

  // Half of 64 positions of the last responsibilities.
  EMA_DEVICE void load_responsibilities(int i) const {
    constexpr int BYTES = Z_PAIR_BYTES / 2;
    Barrier* loaded = &block_.z_loaded[i % PAIRS];
    arrive_expecting(loaded, BYTES);
    copy_bytes(block_.z_pair(i % PAIRS) + half_ * BYTES, block_.stored_pair(args_, i) + half_ * BYTES, BYTES, loaded);
  }

  // From the last bases; when they are here, nobody reads the sums of this block any more. 64 positions at a time.
  EMA_DEVICE void reconstruct() {
    const int pairs = (block_.tiles + 1) / 2;
    Parities loaded;
    if (loads_)
      for (int i = 0; i < min(PAIRS, pairs); ++i) load_responsibilities(i);
    __syncwarp();
    wait(block_.bases_full, args_.num_iters & 1);
#pragma unroll 1
    for (int i = 0; i < pairs; ++i) {
      unsigned char* memory = block_.stage(i % 2 == 0 ? 0 : Shape::SUM_STAGE) + half_ * HALF_PANELS * WIDE_PANEL;
      if (loads_) wait_for_reads<1>();
      meet(HALF_MEETS + half_, 128);  // the memory of y is free
      loaded.wait_for(block_.z_loaded, i % PAIRS);
#pragma unroll 1
      for (int part = 0; part < PARTS; ++part) multiply(block_.z_pair(i % PAIRS), part, memory);
      fence_copies();
      meet(BOTH_HALVES_MEET, 256);  // both have read the responsibilities
      if (loads_ && i + PAIRS < pairs) load_responsibilities(i + PAIRS);
      __syncwarp();
      store(memory, i);
    }
    if (loads_) wait_for_reads<0>();
  }

  // A part of y of 64 positions, to memory.
  EMA_DEVICE void multiply(const unsigned char* responsibilities, int part, unsigned char* memory) const {
    constexpr int COLUMNS = POSITIONS_FASTEST ? 64 : HALF;
    const Operand z = make_operand(responsibilities, 0, STEP);
    const Operand m = make_operand(block_.bases() + (half_ * HALF_PANELS + part) * WIDE_PANEL, WIDE_PANEL, STEP);
    float y[COLUMNS / 2];
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Operand z_k = moved(z, 2 * STEP * k), m_k = moved(m, 2 * STEP * k);
      multiply_group<Math::DTYPE, COLUMNS, true, true>(y, POSITIONS_FASTEST ? m_k : z_k, POSITIONS_FASTEST ? z_k : m_k,
                                                       k > 0);
    }
    commit_products();
    wait_for_products<0>();
    settle(y);
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Tile<uint16_t, 64> panel{memory + (part + j / 8) * WIDE_PANEL};
        *reinterpret_cast<uint32_t*>(panel.at(row_ + 8 * e, j % 8 * 8 + lane() % 4 * 2)) = round_pair<Math>(
            y[4 * j + 2 * e] / RESPONSIBILITY_SCALE, y[4 * j + 2 * e + 1] / RESPONSIBILITY_SCALE);
      }
  }

  EMA_DEVICE void store(unsigned char* memory, int i) const {
    const int position = block_.first + 64 * i, left = min(64, block_.positions - 64 * i);
    const bool whole = left == 64 || block_.first + block_.positions == args_.positions;  // beyond the image all is cut
    if (POSITIONS_FASTEST && !whole) return store_units(memory, position, left / 8);
    if (!loads_) return;
    for (int p = 0; p < HALF_PANELS; ++p) {
      const int channel = half_ * HALF + 64 * p;
      if (POSITIONS_FASTEST)
        store_box(maps_.y, memory + p * WIDE_PANEL, position, channel, block_.head, block_.batch);
      else if (whole)
        store_box(maps_.y, memory + p * WIDE_PANEL, channel, position, block_.head, block_.batch);
      else
        for (int line = 0; line < left; line += 8)
          store_box(maps_.y_lines, memory + p * WIDE_PANEL + line * CHUNK_BYTES, channel, position + line, block_.head,
                    block_.batch);
    }
    commit_stores();
  }

  // The last positions of a block behind which another one goes on, 8 at a time: boxes of 8 columns have other lines.
  EMA_DEVICE void store_units(unsigned char* memory, int position, int units) const {
    const Features& y = args_.io.y;
    auto* image = static_cast<uint16_t*>(y.data) + block_.batch * y.batch_stride + block_.head * y.head_stride + position;
    for (int i = group_thread(); i < HALF * units; i += GROUP) {
      const int line = i / units, channel = half_ * HALF + line, column = i % units * 8;
      const Tile<uint16_t, 64> panel{memory + line / 64 * WIDE_PANEL};
      if (channel < args_.channels)
        *reinterpret_cast<uint4*>(image + channel * y.channel_stride + column) =
            *reinterpret_cast<const uint4*>(panel.at(line % 64, column));
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
