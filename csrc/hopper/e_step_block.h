// What a block of the E-step works on: its stages of features in shared memory, and how products read them.
#pragma once
#include "../device/chunks.h"
#include "group_tile.h"
#include "hopper.h"

namespace ema::hopper {

constexpr int UNIT = E_STEP_UNIT;  // positions whose responsibilities are made at once

struct EStepArgs {
  EStep io;
  int splits, stages, heads, positions, num_bases;
};

// What a kernel is compiled for.
template <class Math_, int CHANNELS_, bool POSITIONS_FASTEST_>
struct EStepVariant {
  using Math = Math_;
  static constexpr int CHANNELS = CHANNELS_;
  static constexpr bool POSITIONS_FASTEST = POSITIONS_FASTEST_;
  static constexpr int M_GROUPS = CHANNELS == 64 ? 1 : 2;  // warpgroups of the M-step
  static constexpr int THREADS = (1 + M_GROUPS) * 128;
};

#if EMA_HOPPER
// Features of a stage, 64 channels in every box: [POSITIONS][64 channels], or [64 channels][64 positions].
template <class V>
struct FeatureStage {
  static constexpr int POSITIONS = stage_positions(V::POSITIONS_FASTEST), BOX_BYTES = POSITIONS * 128;
  static constexpr int BYTES = V::CHANNELS / 64 * BOX_BYTES;
  static constexpr Dtype DTYPE = V::Math::DTYPE;
  unsigned char* memory;

  EMA_DEVICE void copy(int box, const TensorMap& map, Barrier* full, int position, int head, int batch) const {
    unsigned char* target = memory + box * BOX_BYTES;
    if constexpr (V::POSITIONS_FASTEST)
      copy_box(target, map, full, position, 64 * box, head, batch);
    else
      copy_box(target, map, full, 64 * box, position, head, batch);
  }

  // z += rows features^T of a unit.
  EMA_DEVICE void add_logits(float (&z)[UNIT / 2], const uint32_t (&rows)[V::CHANNELS / 16][4], int unit) const {
    const Operand x = make_operand(memory + unit * 64, 0, 1024);
#pragma unroll
    for (int k = 0; k < V::CHANNELS / 16; ++k)
      multiply_group<DTYPE, UNIT, V::POSITIONS_FASTEST>(
          z, rows[k], moved(x, V::POSITIONS_FASTEST ? k * 2048 : k / 4 * BOX_BYTES + k % 4 * 32), true);
  }

  // sums += responsibilities^T features, of the channels from those of `box` on.
  template <int COLUMNS>
  EMA_DEVICE void add_sums(float (&sums)[COLUMNS / 2], const unsigned char* responsibilities, int box) const {
    const Operand z = make_operand(responsibilities, 0, 1024);
    const Operand x = make_operand(memory + box * BOX_BYTES, BOX_BYTES, 1024);
#pragma unroll
    for (int k = 0; k < POSITIONS / 16; ++k)
      multiply_group<DTYPE, COLUMNS, true, !V::POSITIONS_FASTEST>(
          sums, moved(z, k * 2048), moved(x, k * (V::POSITIONS_FASTEST ? 32 : 2048)), true);
  }
};

// The shared memory of a block, and what it works on.
template <class V>
struct EStepBlock {
  using Stage = FeatureStage<V>;
  static constexpr int POSITIONS = Stage::POSITIONS, Z_BYTES = POSITIONS * 128;
  const EStepArgs& args;
  int image, head, batch, first, count;  // stages of positions
  unsigned char *features, *z, *stored;
  float *maxima, *totals, *weights, *bias;
  Barrier *x_full, *z_full;

  EMA_DEVICE EStepBlock(const EStepArgs& args, unsigned char* shared) : args(args) {
    image = blockIdx.x / args.splits, head = image % args.heads, batch = image / args.heads;
    const TileRange tiles(args.positions, args.splits, blockIdx.x % args.splits, POSITIONS);
    first = tiles.begin, count = tiles.count();
    features = shared;
    z = features + args.stages * Stage::BYTES;
    stored = z + args.stages * Z_BYTES;
    maxima = reinterpret_cast<float*>(stored + UNIT * 128);
    totals = maxima + 4 * UNIT;  // both [UNIT][4 warps]
    weights = totals + 4 * UNIT;
    bias = weights + UNIT;
    x_full = reinterpret_cast<Barrier*>(bias + 64);
    z_full = x_full + E_STEP_MAX_STAGES;
    static_assert(sizeof(Barrier) == 8, "the plan counts on another size");
  }
  EMA_DEVICE int position(int i) const { return (first + i) * POSITIONS; }
  EMA_DEVICE Stage stage(int slot) const { return Stage{features + slot * Stage::BYTES}; }

  // All threads of the block take part.
  EMA_DEVICE void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < args.stages; ++i) {
        init_barrier(x_full + i, V::M_GROUPS);
        init_barrier(z_full + i, 4 * POSITIONS / UNIT);
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
