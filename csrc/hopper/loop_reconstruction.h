// The end of the loop, by the warpgroups of the M-step: y from the last responsibilities and bases, each one half of the
// channels.
#pragma once
#include "loop_block.h"

#if EMA_HOPPER
namespace ema::hopper {

template <class Shape>
class LoopReconstruction {
  using Math = typename Shape::Math;
  static constexpr bool POSITIONS_FASTEST = Shape::POSITIONS_FASTEST;
  static constexpr int HALF = Shape::HALF, HALF_PANELS = Shape::PANELS / 2;
  static constexpr int PARTS = POSITIONS_FASTEST ? HALF_PANELS : 1;  // of 64 positions of y: 64 channels, or all
  static constexpr int STEP = 8 * CHUNK_BYTES, PAIRS = Shape::STAGES / 2;

 public:
  EMA_DEVICE LoopReconstruction(const LoopBlock<Shape>& block, const LoopArgs& args, const LoopMaps& maps, int half)
      : block_(block), args_(args), maps_(maps), half_(half), row_(warp() % 4 * 16 + lane() / 4),
        loads_(threadIdx.x % 128 == 0) {}

  // From the last bases; when they are here, nobody reads the sums of this block any more. 64 positions at a time.
  EMA_DEVICE void run() {
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

 private:
  // Half of 64 positions of the last responsibilities.
  EMA_DEVICE void load_responsibilities(int i) const {
    constexpr int BYTES = Z_PAIR_BYTES / 2;
    Barrier* loaded = &block_.z_loaded[i % PAIRS];
    arrive_expecting(loaded, BYTES);
    copy_bytes(block_.z_pair(i % PAIRS) + half_ * BYTES, block_.stored_pair(args_, i) + half_ * BYTES, BYTES, loaded);
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
  bool loads_;
};

}  // namespace ema::hopper
#endif
