// The gradient of the logits, and the M-step with it: warpgroups 0 and 1 work on alternate tiles, so that the softmax of
// one runs beside the products of the other, and the warpgroups behind them keep the sums, each those of its channels.
//
// Both sets of rows stay in shared memory. Without an M-step there are no warpgroups behind: a group loads its own tiles.
#include "gradient_block.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

struct Args {
  EStepGradient io;
  int splits, stages, heads, positions, num_bases;
  TensorMap x, logit_rows, sums_rows, responsibilities, grad_logits;
};

template <class Kind, bool M_STEP_>
struct Variant : Kind {
  static constexpr bool M_STEP = M_STEP_;
  static constexpr int M_GROUPS = !M_STEP ? 0 : Kind::CHANNELS == 512 ? 2 : 1;  // warpgroups of the M-step
  static constexpr int THREADS = (GradientLayout::GROUPS + M_GROUPS) * GROUP;
};

#if EMA_HOPPER
constexpr int POSITIONS = GradientLayout::POSITIONS, GROUPS = GradientLayout::GROUPS;

// What a block works on, and where it lies in shared memory.
template <class V>
struct Work : GradientBlock<Args> {
  using Layout = GradientLayout;
  using Features = FeatureTile<V>;
  static constexpr int LOADERS = V::M_STEP ? V::M_GROUPS : 1;  // threads that load a tile, each the channels it adds up
  static constexpr int ROWS_BYTES = Layout::rows_bytes(V::CHANNELS), STAGE_BYTES = Layout::stage_bytes(V::CHANNELS);
  int matrices;  // sets of rows

  EMA_DEVICE Work(const Args& args, unsigned char* shared)
      : GradientBlock(args, shared), matrices(args.io.sums_rows != nullptr ? 2 : 1) {}

  EMA_DEVICE Tile<uint16_t, 64> gradients(int group) const { return {shared + group * Layout::TILE_BYTES}; }
  EMA_DEVICE Tile<uint16_t, 64> responsibilities(int group) const { return gradients(GROUPS + group); }
  EMA_DEVICE float* statistics(int group) const {
    return reinterpret_cast<float*>(shared + Layout::NUMBERS_BEGIN) + group * Layout::NUMBERS;
  }
  EMA_DEVICE float* weights(int group) const { return statistics(group) + 3 * Layout::STATISTICS; }
  EMA_DEVICE float* masses(int group) const { return weights(group) + Layout::WEIGHTS; }
  EMA_DEVICE Barrier* rows_full() const { return reinterpret_cast<Barrier*>(shared + Layout::BARRIERS_BEGIN); }
  EMA_DEVICE Barrier* ready(int group) const { return rows_full() + 1 + group; }
  EMA_DEVICE Barrier* taken(int group) const { return ready(GROUPS + group); }
  EMA_DEVICE Barrier* full(int stage) const { return taken(GROUPS + stage); }
  EMA_DEVICE unsigned char* rows(int matrix) const { return shared + Layout::ROWS_BEGIN + matrix * ROWS_BYTES; }
  EMA_DEVICE Features features(int stage) const { return {rows(matrices) + stage * STAGE_BYTES}; }

  // Bias, power and gradient of the mass of every base.
  EMA_DEVICE float* bases() const { return reinterpret_cast<float*>(shared + Layout::BASES_BEGIN); }

  // One thread for each base. Those beyond the last one have a bias that leaves them no share.
  EMA_DEVICE void load_base(int base) const {
    const EStepGradient& io = args.io;
    const bool real = base < args.num_bases, summed = real && io.sums_rows != nullptr;
    const int64_t index = static_cast<int64_t>(image) * args.num_bases + base;
    const int64_t padded = static_cast<int64_t>(image) * 64 + base;
    bases()[base] = !real ? -INFINITY : io.logit_bias != nullptr ? io.logit_bias[index] : 0.f;
    bases()[64 + base] = summed ? io.powers[padded] : 0.f;
    bases()[128 + base] = summed ? io.grad_mass[padded] : 0.f;
  }
  // One thread, before the kernel waits for others.
  EMA_DEVICE void prepare() const {
    prefetch_map(args.x);
    prefetch_map(args.logit_rows);
    prefetch_map(args.grad_logits);
    if (args.io.sums_rows != nullptr) prefetch_map(args.sums_rows);
    if (args.io.responsibilities != nullptr) prefetch_map(args.responsibilities);
    init_barrier(rows_full(), 1);
    for (int i = 0; i < args.stages; ++i) init_barrier(full(i), LOADERS);
    for (int i = 0; i < GROUPS; ++i) {
      init_barrier(ready(i), GROUP_WARPS);
      init_barrier(taken(i), LOADERS);
    }
    publish_barriers();
  }
  // The same thread, afterwards.
  EMA_DEVICE void load_all_rows() const {
    arrive_expecting(rows_full(), matrices * ROWS_BYTES);
    load_rows(rows(0), args.logit_rows, rows_full(), V::CHANNELS);
    if (matrices == 2) load_rows(rows(1), args.sums_rows, rows_full(), V::CHANNELS);
  }
  // One thread loads the channels of a loader.
  EMA_DEVICE void load(int tile, int stage, int loader) const {
    constexpr int BOXES = Features::BOXES / LOADERS;
    arrive_expecting(full(stage), BOXES * Features::BOX_BYTES);
    for (int box = loader * BOXES; box < (loader + 1) * BOXES; ++box)
      features(stage).copy(box, args.x, full(stage), position(tile), head(), batch());
  }
  // One thread stores what a group has made of a tile.
  EMA_DEVICE void store(int tile, int group) const {
    store_box(args.grad_logits, gradients(group).memory, 0, position(tile), head(), batch());
    if (args.io.responsibilities != nullptr)
      store_box(args.responsibilities, responsibilities(group).memory, 0, position(tile), head(), batch());
    commit_stores();
  }
};

// The gradient that comes from the reconstruction, 0 if there is none.
EMA_DEVICE void load_products(float (&d)[POSITIONS / 2], const Args& args, int image, int position) {
  const float* products = args.io.value_products;
  const int left = products != nullptr ? args.positions - position - position_of(0) : 0;
  const int64_t first = (static_cast<int64_t>(image) * args.positions + position + position_of(0)) * 64 + first_base();
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int n = c / 2 * 8 + c % 2;
    d[at(c)] = n < left ? products[first + 64 * n] : 0.f;
    d[at(c) + 2] = n < left ? products[first + 64 * n + 8] : 0.f;
  }
}

template <class V>
EMA_DEVICE void make_gradients(const Work<V>& work, int group) {
  using Math = typename V::Math;
  const Args& args = work.args;
  const bool leads = group_thread() == 0;
  const float *bias = work.bases() + first_base(), *powers = bias + 64, *grad_mass = powers + 64;
  float *maxima = work.statistics(group), *totals = maxima + GradientLayout::STATISTICS;
  float* along = totals + GradientLayout::STATISTICS;
  auto larger = [](float a, float b) { return fmaxf(a, b); };
  auto added = [](float a, float b) { return a + b; };
  if constexpr (!V::M_STEP)
    if (leads)
      for (int i = group; i < args.stages && i < work.count; i += GROUPS) work.load(i, i, 0);
  __syncwarp();
  wait(work.rows_full(), 0);

  float masses[2] = {};
  int stage = group;
  uint32_t parity = 0;
  for (int i = group; i < work.count; i += GROUPS) {
    float z[POSITIONS / 2], grad[POSITIONS / 2], values[8];
    wait(work.full(stage), parity);
    begin_products();
    work.features(stage).multiply_rows(z, work.rows(0));
    commit_products();
    work.features(stage).multiply_rows(grad, work.rows(work.matrices - 1));
    commit_products();
    const int position = work.position(i);
    // 0 beyond the last position; in turns, for some warps still read those of the last tile. The address is made anew for
    // every tile: there is no register for it
    float* weights = work.weights(opaque(group)) + i / GROUPS % 2 * POSITIONS;
    if (group_thread() < POSITIONS)
      weights[group_thread()] =
          position_weight(args.io.weight, work.image, args.heads, position + group_thread(), args.positions);
    wait_for_products<1>();
    settle(z);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      float &one = z[at(c)], &other = z[at(c) + 2];
      one += bias[0], other += bias[8];
      values[c] = fmaxf(one, other);
    }
    share_positions(values, maxima, larger);
    float from_values[POSITIONS / 2];  // on their way from here on
    load_products(from_values, args, work.image, position);
    // the tiles of the last turn are in memory, and free
    if (!V::M_STEP && leads) wait_for_reads<0>();
    meet(1 + group, GROUP);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float maximum = shared_position(maxima, c, larger);
      float &one = z[at(c)], &other = z[at(c) + 2];
      one = Math::exponential(one - maximum);
      other = Math::exponential(other - maximum);
      values[c] = one + other;
    }
    share_positions(values, totals, added);
    wait_for_products<0>();
    settle(grad);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      values[c] = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& value = grad[at(c) + 2 * half];
        value = weights[position_of(c)] * (value * powers[8 * half] + grad_mass[8 * half]) +
                from_values[at(c) + 2 * half];
        values[c] += z[at(c) + 2 * half] * value;
      }
    }
    share_positions(values, along, added);
    meet(1 + group, GROUP);
    if constexpr (!V::M_STEP)
      if (leads && i + args.stages < work.count) work.load(i + args.stages, stage, 0);
    __syncwarp();
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float factor = 1 / shared_position(totals, c, added);
      const float mean = factor * shared_position(along, c, added);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float &one = z[at(c) + 2 * half], &value = grad[at(c) + 2 * half];
        one *= factor;
        value = one * (value - mean);
        one *= weights[position_of(c)] * (work.matrices == 2 ? powers[8 * half] : RESPONSIBILITY_SCALE);
        masses[half] += value;
      }
    }
    if (V::M_STEP && i >= GROUPS) wait(work.taken(group), (i / GROUPS - 1) & 1);
    store_positions<Math>(grad, work.gradients(group));
    store_positions<Math>(z, work.responsibilities(group));
    fence_copies();
    if constexpr (V::M_STEP) {
      arrive_as_warp(work.ready(group));
    } else {
      meet(1 + group, GROUP);
      if (leads) work.store(i, group);
      __syncwarp();
    }
    stage += GROUPS;
    if (stage >= args.stages) stage -= args.stages, parity ^= 1;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    masses[half] += __shfl_xor_sync(~0u, masses[half], 1);
    masses[half] += __shfl_xor_sync(~0u, masses[half], 2);
    if (lane() % 4 == 0) work.masses(group)[first_base() + 8 * half] = masses[half];
  }
  if (!V::M_STEP && leads) wait_for_reads<0>();
}

// The sums of the features with the gradients, of the channels of one warpgroup.
template <class V>
EMA_DEVICE void add_up(const Work<V>& work, int part) {
  // 256 columns at once want more registers than a thread of 512 has before it takes some
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS, WIDTH = COLUMNS < 128 ? COLUMNS : 128;
  const bool leads = group_thread() == 0;
  const int barrier = 1 + GROUPS + part;
  if (leads)
    for (int i = 0; i < work.args.stages && i < work.count; ++i) work.load(i, i, part);
  __syncwarp();
  float sums[COLUMNS / WIDTH][WIDTH / 2] = {};
  int stage = 0;
  uint32_t parity = 0;
  for (int i = 0; i < work.count; ++i) {
    const int group = i % GROUPS;
    wait(work.full(stage), parity);
    wait(work.ready(group), i / GROUPS & 1);
    if (part == 0 && leads) work.store(i, group);
    __syncwarp();
    begin_products();
#pragma unroll
    for (int j = 0; j < COLUMNS / WIDTH; ++j)
      work.features(stage).template add_sums<WIDTH>(sums[j], work.gradients(group).memory,
                                                    (part * COLUMNS + j * WIDTH) / 64);
    commit_products();
    wait_for_products<0>();
    meet(barrier, GROUP);
    if (leads) {
      if (part == 0) wait_for_reads<0>();
      arrive(work.taken(group));
      if (i + work.args.stages < work.count) work.load(i + work.args.stages, stage, part);
    }
    __syncwarp();
    if (++stage == work.args.stages) stage = 0, parity ^= 1;
  }
  const int width = padded_channels(work.args.io.x.channels);
#pragma unroll
  for (int j = 0; j < COLUMNS / WIDTH; ++j) {
    settle(sums[j]);
    store_sums<typename V::Math, WIDTH>(sums[j], work.args.io.sums, blockIdx.x, part * COLUMNS + j * WIDTH, width);
  }
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1) e_step_gradient_kernel(const __grid_constant__ Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  if (threadIdx.x == 0) Work<V>(args, shared).prepare();
  wait_for_predecessors();
  if (threadIdx.x == 0) Work<V>(args, shared).load_all_rows();
  if (threadIdx.x < 64) Work<V>(args, shared).load_base(threadIdx.x);
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  if (group < GROUPS) {
    if constexpr (V::M_GROUPS == 2) give_registers<96>();
    make_gradients(Work<V>(args, shared), group);
  } else {
    if constexpr (V::M_GROUPS == 2) take_registers<160>();
    if constexpr (V::M_STEP) add_up(Work<V>(args, shared), group - GROUPS);
  }
  __syncthreads();
  if (threadIdx.x < 64) {
    const Work<V> work(args, shared);
    args.io.masses[static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x] =
        work.masses(0)[threadIdx.x] + work.masses(1)[threadIdx.x];
  }
#endif
}

}  // namespace

cudaError_t e_step_gradient(const Problem& problem, const EStepPlan& plan, const EStepGradient& io,
                            cudaStream_t stream) {
  Args args{io, plan.splits, plan.feature_slots, problem.heads, problem.positions, problem.num_bases, {}, {}, {}, {}, {}};
  cudaError_t error = make_tile_map(&args.x, problem, io.x);
  auto describe = [&](TensorMap* map, const Matrices& matrices, int lines) {
    if (error == cudaSuccess && matrices.data != nullptr) error = make_tensor_map(map, matrices, lines);
  };
  const int width = padded_channels(problem.channels), lines = GradientLayout::POSITIONS;
  describe(&args.logit_rows, as_matrices(problem, io.logit_rows, 64, width), 64);
  describe(&args.sums_rows, as_matrices(problem, io.sums_rows, 64, width), 64);
  describe(&args.responsibilities, as_matrices(problem, io.responsibilities, problem.positions, 64), lines);
  describe(&args.grad_logits, as_matrices(problem, io.grad_logits, problem.positions, 64), lines);
  if (error != cudaSuccess) return error;
  auto run = [&](auto variant) {
    using V = decltype(variant);
    return launch(e_step_gradient_kernel<V>, dim3(problem.images() * plan.splits), dim3(V::THREADS),
                  plan.shared_memory, stream, args);
  };
  return with_kind(problem, problem.channels, [&](auto kind) {
    using Kind = decltype(kind);
    return plan.fused ? run(Variant<Kind, true>{}) : run(Variant<Kind, false>{});
  });
}

}  // namespace ema::hopper
