// What a block of a gradient works on, and what gradients of a reconstruction have in common: the value rows stay in shared
// memory, and warpgroup 0 multiplies the gradient of y by them.
#pragma once
#include "../device/chunks.h"
#include "feature_tile.h"
#include "gradient_layout.h"
#include "group_tile.h"
#include "ring.h"

namespace ema::hopper {

// What the kernels of a reconstruction's gradient are compiled for.
template <class Kind>
struct ReconstructVariant : Kind {
  static constexpr int M_GROUPS = Kind::CHANNELS == 512 ? 2 : 1;  // warpgroups of the sums
  static constexpr int THREADS = (1 + M_GROUPS) * GROUP;
};

#if EMA_HOPPER
// A share of the tiles of an image.
template <class Args>
struct GradientBlock {
  const Args& args;
  unsigned char* shared;
  int image, begin, count;  // tiles

  EMA_DEVICE GradientBlock(const Args& args, unsigned char* shared) : args(args), shared(shared) {
    // every role asks anew, or what all have in common would be spilled
    const int block = opaque(blockIdx.x);
    const TileRange tiles(args.positions, args.splits, block % args.splits, TILE_POSITIONS);
    image = block / args.splits, begin = tiles.begin, count = tiles.count();
  }

  EMA_DEVICE int head() const { return image % args.heads; }
  EMA_DEVICE int batch() const { return image / args.heads; }
  EMA_DEVICE int position(int tile) const { return (begin + tile) * TILE_POSITIONS; }

  // One thread loads rows of the bases.
  EMA_DEVICE void load_rows(unsigned char* to, const TensorMap& rows, Barrier* full, int channels) const {
    for (int box = 0; box < channels / 64; ++box)
      copy_box(to + box * 64 * 128, rows, full, 64 * box, 0, head(), batch());
  }
};

// grad_y value_rows^T of a tile, whose stage is handed back. A thread has two bases of 8 positions.
template <class Work>
EMA_DEVICE void multiply_by_rows(const Work& work, int tile, Ring& grad_y) {
  float d[TILE_POSITIONS / 2];
  begin_products();
  work.grad_y(grad_y.slot).multiply_rows(d, work.value_rows());
  commit_products();
  wait_for_products<0>();
  settle(d);
  grad_y.hand_back();
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int position = work.position(tile) + position_of(c);
    if (position >= work.args.positions) continue;
    float* line = work.args.io.products + (static_cast<int64_t>(work.image) * work.args.positions + position) * 64;
    line[first_base()] = d[at(c)];
    line[first_base() + 8] = d[at(c) + 2];
  }
}
#endif

}  // namespace ema::hopper
