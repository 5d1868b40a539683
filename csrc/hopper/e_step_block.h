// What a block of the E-step works on, and what lies where in its shared memory.
#pragma once
#include "../device/chunks.h"
#include "feature_tile.h"
#include "group_tile.h"

namespace ema::hopper {

struct EStepArgs {
  EStep io;
  int splits, stages, heads, positions, num_bases;
};

// How features come to the stages: as boxes, as rows that start anywhere, with positions fastest, or as rows of 8 bits.
enum class Rows { BOXED, ANY, EIGHT_BITS };

// What a kernel is compiled for.
template <class Kind, Rows ROWS_>
struct EStepVariant : Kind {
  static constexpr Rows ROWS = ROWS_;
  static constexpr int M_GROUPS = Kind::CHANNELS == 64 ? 1 : 2;  // warpgroups of the M-step
  static constexpr int THREADS = (1 + M_GROUPS) * 128;
};

#if EMA_HOPPER
// The shared memory of a block, and what it works on.
template <class V>
struct EStepBlock {
  using Features = FeatureTile<V>;
  static constexpr int FEATURE_BYTES = Features::BOXES * Features::BOX_BYTES, Z_BYTES = TILE_POSITIONS * 128;
  const EStepArgs& args;
  int image, head, batch, first, count;  // stages of positions
  unsigned char *features, *z, *stored;
  float *maxima, *totals, *bias;
  Barrier *x_full, *z_full;

  EMA_DEVICE EStepBlock(const EStepArgs& args, unsigned char* shared) : args(args) {
    // every role asks anew, or what both have in common would be spilled
    const int block = opaque(blockIdx.x);
    image = block / args.splits, head = image % args.heads, batch = image / args.heads;
    const TileRange tiles(args.positions, args.splits, block % args.splits, TILE_POSITIONS);
    first = tiles.begin, count = tiles.count();
    features = shared;
    z = features + args.stages * FEATURE_BYTES;
    stored = z + args.stages * Z_BYTES;
    maxima = reinterpret_cast<float*>(stored + Z_BYTES);
    totals = maxima + 4 * TILE_POSITIONS;  // both [positions][4 warps]
    bias = totals + 4 * TILE_POSITIONS;
    x_full = reinterpret_cast<Barrier*>(bias + 64);
    z_full = x_full + E_STEP_MAX_STAGES;
    static_assert(sizeof(Barrier) == 8, "the plan counts on another size");
  }
  EMA_DEVICE int position(int i) const { return (first + i) * TILE_POSITIONS; }
  EMA_DEVICE Features stage(int slot) const { return {features + slot * FEATURE_BYTES}; }

  // All threads of the block take part.
  EMA_DEVICE void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < args.stages; ++i) {
        init_barrier(x_full + i, V::M_GROUPS);
        init_barrier(z_full + i, GROUP_WARPS);
      }
      publish_barriers();
    }
    const int base = threadIdx.x, num_bases = args.num_bases;
    const float* all = args.io.logit_bias;
    if (base < 64)
      bias[base] = base >= num_bases ? -INFINITY : all ? all[static_cast<int64_t>(image) * num_bases + base] : 0.f;
    __syncthreads();
  }
};

// The stage that is worked on, and the parity of its turn.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;

  EMA_DEVICE void advance(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
};
#endif

}  // namespace ema::hopper
