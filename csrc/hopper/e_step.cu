// E-step, and the M-step of the same tile: warpgroup 0 keeps the bases in its registers and makes responsibilities, the
// others load features and keep the sums, each those of its share of the channels.
//
// The M-step of a tile is let go when the product of the next tile's E-step is done: it runs beside that tile's softmax.
// The features of a stage are replaced when both M-steps have finished with it, which they begin after the E-step.
#include "../device/chunks.h"
#include "group_tile.h"
#include "hopper.h"

namespace ema::hopper {
namespace {

struct Args {
  EStep io;
  int splits, stages, heads, positions, num_bases;
};

#if EMA_HOPPER
// The stage of a tile, and the parity of its turn.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  EMA_DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Features of a tile, 64 channels in every box: [POSITIONS][64 channels], or [64 channels][64 positions].
template <class Math, int CHANNELS, bool POSITIONS_FASTEST>
struct FeatureTile {
  static constexpr int POSITIONS = tile_positions(POSITIONS_FASTEST), BOX_BYTES = POSITIONS * 128;
  static constexpr int BYTES = CHANNELS / 64 * BOX_BYTES;
  unsigned char* memory;

  EMA_DEVICE void copy(int box, const TensorMap& map, Barrier* full, int position, int head, int batch) const {
    unsigned char* target = memory + box * BOX_BYTES;
    if constexpr (POSITIONS_FASTEST)
      copy_box(target, map, full, position, 64 * box, head, batch);
    else
      copy_box(target, map, full, 64 * box, position, head, batch);
  }

  // z = rows features^T.
  EMA_DEVICE void logits(float (&z)[POSITIONS / 2], const uint32_t (&rows)[CHANNELS / 16][4]) const {
    const Operand x = make_operand(memory, 0, 1024);
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; ++k)
      multiply_group<DTYPE<Math>, POSITIONS, POSITIONS_FASTEST>(
          z, rows[k], moved(x, POSITIONS_FASTEST ? k * 2048 : k / 4 * BOX_BYTES + k % 4 * 32), k > 0);
  }

  // sums += responsibilities^T features, of channels from the first of `box` on.
  template <int COLUMNS>
  EMA_DEVICE void add_sums(float (&sums)[COLUMNS / 2], const unsigned char* responsibilities, int box) const {
    const Operand z = make_operand(responsibilities, 0, 1024), x = make_operand(memory + box * BOX_BYTES, BOX_BYTES, 1024);
#pragma unroll
    for (int k = 0; k < POSITIONS / 16; ++k)
      multiply_group<DTYPE<Math>, COLUMNS, true, !POSITIONS_FASTEST>(sums, moved(z, k * 2048),
                                                                    moved(x, k * (POSITIONS_FASTEST ? 32 : 2048)), true);
  }
};
#endif

template <class Math_, int CHANNELS_, bool POSITIONS_FASTEST_>
struct Variant {
  using Math = Math_;
  static constexpr int CHANNELS = CHANNELS_;
  static constexpr bool POSITIONS_FASTEST = POSITIONS_FASTEST_;
  static constexpr int M_GROUPS = CHANNELS == 64 ? 1 : 2;  // warpgroups of the M-step
  static constexpr int THREADS = (1 + M_GROUPS) * 128;
};

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1)
    e_step_kernel(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap z_map, const Args args) {
#if EMA_HOPPER
  using Math = typename V::Math;
  constexpr int CHANNELS = V::CHANNELS, M_GROUPS = V::M_GROUPS;
  using X = FeatureTile<Math, CHANNELS, V::POSITIONS_FASTEST>;
  constexpr int POSITIONS = X::POSITIONS, Z_BYTES = POSITIONS * 128;
  const EStep& io = args.io;
  EMA_SHARED(shared);
  unsigned char* z_memory = shared + args.stages * X::BYTES;
  unsigned char* stored = z_memory + args.stages * Z_BYTES;
  float* maxima = reinterpret_cast<float*>(stored + Z_BYTES);  // [POSITIONS][4 warps]
  float *totals = maxima + 4 * POSITIONS, *weights = totals + 4 * POSITIONS;
  Barrier *x_full = reinterpret_cast<Barrier*>(weights + POSITIONS), *z_full = x_full + MAX_STAGES;
  static_assert(sizeof(Barrier) == 8, "the plan counts on another size");

  const int image = blockIdx.x / args.splits, head = image % args.heads, batch = image / args.heads;
  const TileRange tiles(args.positions, args.splits, blockIdx.x % args.splits, POSITIONS);
  const int count = tiles.count(), width = padded_channels(io.x.channels);
  const bool stores = io.responsibilities != nullptr, sums_up = io.sums != nullptr;
  if (threadIdx.x == 0) {
    for (int i = 0; i < args.stages; ++i) {
      init_barrier(x_full + i, M_GROUPS);
      init_barrier(z_full + i, 4);
    }
    publish_barriers();
  }
  __syncthreads();

  Turn turn;
  if (threadIdx.x < GROUP) {
    if constexpr (CHANNELS == 512) take_registers<184>();
    const int base = first_base();
    const float weight_unit = 1.f / weight_power(io.weight_maxima, image);
    uint32_t rows[CHANNELS / 16][4];
    const auto* row = static_cast<const uint16_t*>(io.logit_rows) + (static_cast<int64_t>(image) * 64 + base) * width;
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int channel = 16 * k + e / 2 * 8 + lane() % 4 * 2;
        rows[k][e] = channel < width ? *reinterpret_cast<const uint32_t*>(row + e % 2 * 8 * width + channel) : 0;
      }
    float bias[2], masses[2] = {};
    bool real[2];  // the others are bases beyond the last
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      real[half] = base + 8 * half < args.num_bases;
      const int64_t offset = static_cast<int64_t>(image) * args.num_bases + base + 8 * half;
      bias[half] = io.logit_bias != nullptr && real[half] ? io.logit_bias[offset] : 0.f;
    }
    auto hand_over = [&](int stage) {
      __syncwarp();
      if (lane() == 0) arrive(z_full + stage);
    };
    auto larger = [](float a, float b) { return fmaxf(a, b); };
    auto added = [](float a, float b) { return a + b; };

    int previous = 0;
    for (int i = 0; i < count; ++i, turn.advance(args.stages)) {
      const int position = (tiles.begin + i) * POSITIONS;
      float weight = 0;  // 0 beyond the last position, which has features 0 and some responsibilities all the same
      if (threadIdx.x < POSITIONS)
        weight = weight_unit * position_weight(io.weight, image, args.heads, position + threadIdx.x, args.positions);
      float z[POSITIONS / 2];
      wait(x_full + turn.stage, turn.parity);
      begin_products();
      X{shared + turn.stage * X::BYTES}.logits(z, rows);
      commit_products();
      wait_for_products<0>();
      if (i > 0) hand_over(previous);
      previous = turn.stage;
      if (threadIdx.x == 0) wait_for_reads<0>();

      float values[8];
#pragma unroll
      for (int first = 0; first < POSITIONS; first += 32) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          float *one = z + first / 2 + element_of(c), *other = one + 2;
          *one += bias[0], *other += bias[1];
          values[c] = fmaxf(real[0] ? *one : -INFINITY, real[1] ? *other : -INFINITY);
        }
        share_columns(values, maxima + 4 * first, larger);
      }
      meet(1, GROUP);
#pragma unroll
      for (int first = 0; first < POSITIONS; first += 32) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          float *one = z + first / 2 + element_of(c), *other = one + 2;
          const float maximum = shared_column(maxima, first + position_of(c), larger);
          *one = real[0] ? Math::exponential(*one - maximum) : 0.f;
          *other = real[1] ? Math::exponential(*other - maximum) : 0.f;
          values[c] = *one + *other;
        }
        share_columns(values, totals + 4 * first, added);
      }
      if (threadIdx.x < POSITIONS) weights[threadIdx.x] = weight;
      meet(1, GROUP);
#pragma unroll
      for (int c = 0; c < POSITIONS / 4; ++c) {
        const float factor = RESPONSIBILITY_SCALE / shared_column(totals, position_of(c), added);
        z[element_of(c)] *= factor, z[element_of(c) + 2] *= factor;
      }
      if (stores) store_positions<Math>(z, Tile<uint16_t, 64>{stored});
#pragma unroll
      for (int c = 0; c < POSITIONS / 4; ++c) {
        const float factor = weights[position_of(c)];
        masses[0] += z[element_of(c)] *= factor;
        masses[1] += z[element_of(c) + 2] *= factor;
      }
      if (sums_up) store_positions<Math>(z, Tile<uint16_t, 64>{z_memory + turn.stage * Z_BYTES});
      fence_copies();
      if (stores) {
        meet(1, GROUP);
        if (threadIdx.x == 0) {
          store_box(z_map, stored, 0, position, head, batch);
          commit_stores();
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
    if (threadIdx.x == 0) wait_for_reads<0>();
  } else {
    if constexpr (CHANNELS == 512) give_registers<160>();
    constexpr int COLUMNS = CHANNELS / M_GROUPS, BOXES = COLUMNS / 64;
    const int group = threadIdx.x / GROUP - 1;
    const bool loads = group_thread() == 0;
    auto load = [&](int i, int stage) {
      if (!loads || i >= count) return;
      arrive_expecting(x_full + stage, BOXES * X::BOX_BYTES);
      const int first = opaque(group) * BOXES;  // addresses that leave the loop of the products make it wait for each
      for (int box = first; box < first + BOXES; ++box)
        X{shared + stage * X::BYTES}.copy(box, x_map, x_full + stage, (tiles.begin + i) * POSITIONS, head, batch);
    };
    for (int i = 0; i < args.stages - 1; ++i) load(i, i);
    __syncwarp();
    if (!sums_up) {
      for (int i = 0; i < count; ++i, turn.advance(args.stages)) {
        wait(z_full + turn.stage, turn.parity);
        load(i + args.stages, turn.stage);
      }
      return;
    }
    float sums[COLUMNS / 2] = {};
    int previous = args.stages - 1;
    for (int i = 0; i < count; ++i, turn.advance(args.stages)) {
      wait(x_full + turn.stage, turn.parity);
      wait(z_full + turn.stage, turn.parity);
      begin_products();
      X{shared + turn.stage * X::BYTES}.template add_sums<COLUMNS>(sums, z_memory + turn.stage * Z_BYTES, group * BOXES);
      commit_products();
      wait_for_products<1>();
      meet(2 + group, GROUP);
      load(i - 1 + args.stages, previous);
      __syncwarp();
      previous = turn.stage;
    }
    wait_for_products<0>();
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
  const int positions = tile_positions(problem.positions_fastest);
  TensorMap x_map{}, z_map{};
  cudaError_t error =
      make_tensor_map(&x_map, as_matrices(problem, io.x), problem.positions_fastest ? 64 : positions);
  if (error == cudaSuccess && io.responsibilities != nullptr)
    error = make_tensor_map(&z_map, as_matrices(problem, io.responsibilities, problem.positions, 64), positions);
  if (error != cudaSuccess) return error;
  const Args args{io, plan.splits, plan.feature_slots, problem.heads, problem.positions, problem.num_bases};
  const dim3 grid(problem.images() * plan.splits);
  auto run = [&](auto variant) {
    using V = decltype(variant);
    return launch(e_step_kernel<V>, grid, dim3(V::THREADS), plan.shared_memory, stream, x_map, z_map, args);
  };
  return problem.dtype == Dtype::float16 ? with_channels<Float16>(problem, run)
                                         : with_channels<Bfloat16>(problem, run);
}

}  // namespace ema::hopper
