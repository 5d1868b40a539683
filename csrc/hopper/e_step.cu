// E-step, and the M-step of the same positions: warpgroup 0 keeps the bases in its registers and makes responsibilities,
// the others load features and keep the sums, each those of its share of the channels.
//
// Responsibilities are handed over when the product of the next ones is done, so that their M-step runs beside the next
// softmax. A stage is filled again once both M-steps have finished with it, and they begin after the E-step.
#include "../device/chunks.h"
#include "group_tile.h"
#include "hopper.h"

namespace ema::hopper {
namespace {

constexpr int UNIT = E_STEP_UNIT;  // positions whose responsibilities are made at once

struct Args {
  EStep io;
  int splits, stages, heads, positions, num_bases;
};

// What a kernel is compiled for.
template <class Math_, int CHANNELS_, bool POSITIONS_FASTEST_>
struct Variant {
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
struct Block {
  using Stage = FeatureStage<V>;
  static constexpr int POSITIONS = Stage::POSITIONS, Z_BYTES = POSITIONS * 128;
  const Args& args;
  int image, head, batch, first, count;  // stages of positions
  unsigned char *features, *z, *stored;
  float *maxima, *totals, *weights, *bias;
  Barrier *x_full, *z_full;

  EMA_DEVICE Block(const Args& args, unsigned char* shared) : args(args) {
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

// The fragments of the rows of the bases.
template <class V>
EMA_DEVICE void load_rows(uint32_t (&rows)[V::CHANNELS / 16][4], const Block<V>& block) {
  const int width = padded_channels(block.args.io.x.channels);
  const uint16_t* row = static_cast<const uint16_t*>(block.args.io.logit_rows) +
                        (static_cast<int64_t>(block.image) * 64 + first_base()) * width;
#pragma unroll
  for (int k = 0; k < V::CHANNELS / 16; ++k)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int channel = 16 * k + e / 2 * 8 + lane() % 4 * 2;
      rows[k][e] = channel < width ? *reinterpret_cast<const uint32_t*>(row + e % 2 * 8 * width + channel) : 0;
    }
}

template <class V>
EMA_DEVICE void respond(const Block<V>& block, const TensorMap& z_map) {
  using Math = typename V::Math;
  const Args& args = block.args;
  const EStep& io = args.io;
  const int thread = threadIdx.x, base = first_base();
  const bool real[2] = {base < args.num_bases, base + 8 < args.num_bases};
  auto larger = [](float a, float b) { return fmaxf(a, b); };
  auto added = [](float a, float b) { return a + b; };
  auto hand_over = [&](int slot) {
    __syncwarp();
    if (lane() == 0) arrive(block.z_full + slot);
  };
  uint32_t rows[V::CHANNELS / 16][4];
  load_rows(rows, block);
  const float weight_unit = 1.f / weight_power(io.weight_maxima, block.image);
  float masses[2] = {};
  Turn turn;
  int previous = -1;
  for (int i = 0; i < block.count; ++i, turn.advance(args.stages)) {
    wait(block.x_full + turn.slot, turn.parity);
#pragma unroll 1
    for (int unit = 0; unit < block.POSITIONS / UNIT; ++unit) {
      const int position = block.position(i) + unit * UNIT;
      float weight = 0;
      if (thread < UNIT)  // 0 beyond the last position, which has features 0 and some responsibilities all the same
        weight = weight_unit * position_weight(io.weight, block.image, args.heads, position + thread, args.positions);
      float z[UNIT / 2];
#pragma unroll
      for (int e = 0; e < UNIT / 2; ++e) z[e] = block.bias[base + e / 2 % 2 * 8];
      begin_products();
      block.stage(turn.slot).add_logits(z, rows, unit);
      commit_products();
      wait_for_products<0>();
      settle(z);
      if (previous >= 0) hand_over(previous);
      previous = turn.slot;
      if (thread == 0) wait_for_reads<0>();

      float values[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) values[c] = fmaxf(z[at(c)], z[at(c) + 2]);
      share_positions(values, block.maxima, larger);
      meet(1, GROUP);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float maximum = shared_position(block.maxima, c, larger);
        z[at(c)] = real[0] ? Math::exponential(z[at(c)] - maximum) : 0.f;
        z[at(c) + 2] = real[1] ? Math::exponential(z[at(c) + 2] - maximum) : 0.f;
        values[c] = z[at(c)] + z[at(c) + 2];
      }
      share_positions(values, block.totals, added);
      if (thread < UNIT) block.weights[thread] = weight;
      meet(1, GROUP);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float factor = RESPONSIBILITY_SCALE * reciprocal_approximate(shared_position(block.totals, c, added));
        z[at(c)] *= factor, z[at(c) + 2] *= factor;
      }
      if (io.responsibilities != nullptr) store_positions<Math>(z, Tile<uint16_t, 64>{block.stored});
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float factor = block.weights[position_of(c)];
        masses[0] += z[at(c)] *= factor;
        masses[1] += z[at(c) + 2] *= factor;
      }
      if (io.sums != nullptr)
        store_positions<Math>(z, Tile<uint16_t, 64>{block.z + turn.slot * block.Z_BYTES + unit * UNIT * 128});
      fence_copies();
      if (io.responsibilities != nullptr) {
        meet(1, GROUP);
        if (thread == 0) {
          store_box(z_map, block.stored, 0, position, block.head, block.batch);
          commit_stores();
        }
      }
    }
  }
  hand_over(previous);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    masses[half] += __shfl_xor_sync(~0u, masses[half], 1);
    masses[half] += __shfl_xor_sync(~0u, masses[half], 2);
    if (lane() % 4 == 0) io.masses[static_cast<int64_t>(blockIdx.x) * 64 + base + 8 * half] = masses[half];
  }
  if (thread == 0) wait_for_reads<0>();
}

template <class V>
EMA_DEVICE void add_up(const Block<V>& block, const TensorMap& x_map) {
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS, BOXES = COLUMNS / 64;
  const EStep& io = block.args.io;
  const int group = threadIdx.x / GROUP - 1, stages = block.args.stages;
  auto load = [&](int i, int slot) {
    if (group_thread() != 0 || i >= block.count) return;
    arrive_expecting(block.x_full + slot, BOXES * block.stage(slot).BOX_BYTES);
    const int first = opaque(group) * BOXES;  // addresses made before the loop of the products would break their pipeline
    for (int box = first; box < first + BOXES; ++box)
      block.stage(slot).copy(box, x_map, block.x_full + slot, block.position(i), block.head, block.batch);
  };
  for (int i = 0; i < stages - 1; ++i) load(i, i);
  __syncwarp();
  Turn turn;
  int previous = stages - 1;
  if (io.sums == nullptr) {
    // only who loads: another one could fall behind by a whole turn of the stages and wait for ever
    for (int i = 0; i < block.count && group_thread() == 0; ++i, turn.advance(stages)) {
      wait(block.z_full + turn.slot, turn.parity);
      load(i + stages - 1, previous);
      previous = turn.slot;
    }
    return;
  }
  float sums[COLUMNS / 2] = {};
  for (int i = 0; i < block.count; ++i, turn.advance(stages)) {
    wait(block.x_full + turn.slot, turn.parity);
    wait(block.z_full + turn.slot, turn.parity);
    begin_products();
    block.stage(turn.slot).template add_sums<COLUMNS>(sums, block.z + turn.slot * block.Z_BYTES, group * BOXES);
    commit_products();
    wait_for_products<1>();
    meet(2 + group, GROUP);
    load(i + stages - 1, previous);
    __syncwarp();
    previous = turn.slot;
  }
  wait_for_products<0>();
  settle(sums);
  const int width = padded_channels(io.x.channels);
  float* slot = io.sums + (static_cast<int64_t>(blockIdx.x) * 64 + first_base()) * width;
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i += 4) {
    const int channel = group * COLUMNS + 2 * i + lane() % 4 * 2;
    if (channel >= width) break;
    *reinterpret_cast<float2*>(slot + channel) = make_float2(sums[i], sums[i + 1]);
    *reinterpret_cast<float2*>(slot + 8 * width + channel) = make_float2(sums[i + 2], sums[i + 3]);
  }
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1)
    e_step_kernel(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap z_map, const Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Block<V> block(args, shared);
  block.prepare();
  // bases or sums of 512 channels are 128 registers a thread
  if (threadIdx.x < GROUP) {
    if constexpr (V::CHANNELS == 512) take_registers<184>();
    respond(block, z_map);
  } else {
    if constexpr (V::CHANNELS == 512) give_registers<160>();
    add_up(block, x_map);
  }
#endif
}

// Calls `run` with the variant of the problem.
template <class Math, class Run>
cudaError_t with_channels(const Problem& problem, Run run) {
  auto in_order = [&](auto channels) {
    constexpr int CHANNELS = decltype(channels)::value;
    return problem.positions_fastest ? run(Variant<Math, CHANNELS, true>{}) : run(Variant<Math, CHANNELS, false>{});
  };
  switch (compiled_channels(problem.channels)) {
    case 64: return in_order(std::integral_constant<int, 64>{});
    case 128: return in_order(std::integral_constant<int, 128>{});
    case 256: return in_order(std::integral_constant<int, 256>{});
    default: return in_order(std::integral_constant<int, 512>{});
  }
}

}  // namespace

cudaError_t e_step(const Problem& problem, const EStepPlan& plan, const EStep& io, cudaStream_t stream) {
  const Args args{io, plan.splits, plan.feature_slots, problem.heads, problem.positions, problem.num_bases};
  const dim3 grid(problem.images() * plan.splits);
  auto run = [&](auto variant) {
    using V = decltype(variant);
    TensorMap x_map{}, z_map{};
    cudaError_t error = make_tensor_map(&x_map, as_matrices(problem, io.x), V::POSITIONS_FASTEST ? 64 : UNIT);
    if (error == cudaSuccess && io.responsibilities != nullptr)
      error = make_tensor_map(&z_map, as_matrices(problem, io.responsibilities, problem.positions, 64), UNIT);
    if (error != cudaSuccess) return error;
    return launch(e_step_kernel<V>, grid, dim3(V::THREADS), plan.shared_memory, stream, x_map, z_map, args);
  };
  return with_half_math(problem, [&](auto math) { return with_channels<decltype(math)>(problem, run); });
}

}  // namespace ema::hopper
