// The gradient of a reconstruction to both its factors, from the features: warpgroup 0 makes responsibilities, with the
// bases in its registers, and multiplies the gradient of y by the value rows, which stay in shared memory. Those behind
// it, each for its channels, multiply the gradient of y by the responsibilities; the first of them loads.
#include <algorithm>

#include "gradient_block.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

struct Args {
  ReconstructGradient io;
  int splits, stages, heads, positions, num_bases;
  TensorMap x, grad_y, value_rows;
};

#if EMA_HOPPER
constexpr int POSITIONS = GradientLayout::POSITIONS;

// What a block works on, and where it lies in shared memory.
template <class V>
struct Work : GradientBlock<Args> {
  using Layout = ReconstructGradientLayout;
  using Features = FeatureTile<V>;
  static constexpr int ROWS_BYTES = GradientLayout::rows_bytes(V::CHANNELS);
  static constexpr int TILE_BYTES = GradientLayout::stage_bytes(V::CHANNELS);  // of features
  static constexpr int STAGE_BYTES = Layout::stage_bytes(V::CHANNELS);
  using GradientBlock<Args>::GradientBlock;

  // two statistics of the softmax, then the bias of every base
  EMA_DEVICE float* maxima() const { return reinterpret_cast<float*>(shared); }
  EMA_DEVICE float* totals() const { return maxima() + Layout::STATISTICS; }
  EMA_DEVICE float* bias() const { return totals() + Layout::STATISTICS; }
  EMA_DEVICE Barrier* rows_full() const { return reinterpret_cast<Barrier*>(bias() + 64); }
  EMA_DEVICE Barrier* z_full(int stage) const { return rows_full() + 1 + stage; }
  EMA_DEVICE Ring x_ring() const { return {z_full(args.stages), args.stages}; }
  EMA_DEVICE Ring grad_y_ring() const { return {z_full(3 * args.stages), args.stages}; }
  EMA_DEVICE unsigned char* value_rows() const { return shared + Layout::HEAD_BYTES; }
  EMA_DEVICE Features x(int stage) const { return {value_rows() + ROWS_BYTES + stage * STAGE_BYTES}; }
  EMA_DEVICE Features grad_y(int stage) const { return {x(stage).memory + TILE_BYTES}; }
  EMA_DEVICE unsigned char* z(int stage) const { return grad_y(stage).memory + TILE_BYTES; }

  // One thread, before the kernel waits for others.
  EMA_DEVICE void prepare() const {
    prefetch_map(args.x);
    prefetch_map(args.grad_y);
    prefetch_map(args.value_rows);
    init_barrier(rows_full(), 1);
    for (int i = 0; i < args.stages; ++i) init_barrier(z_full(i), GROUP_WARPS);
    x_ring().init(GROUP_WARPS);
    grad_y_ring().init(V::THREADS / 32);
  }
  // The same thread, afterwards.
  EMA_DEVICE void load_value_rows() const {
    arrive_expecting(rows_full(), ROWS_BYTES);
    load_rows(value_rows(), args.value_rows, rows_full(), V::CHANNELS);
  }
  // One thread for each base. Those beyond the last one get no share.
  EMA_DEVICE void load_bias(int base) const {
    const float* all = args.io.logit_bias;
    const int64_t first = static_cast<int64_t>(image) * args.num_bases;
    bias()[base] = base >= args.num_bases ? -INFINITY : all != nullptr ? all[first + base] : 0.f;
  }
  // One thread loads a tile of one kind.
  EMA_DEVICE void load(int tile, const Features& to, const TensorMap& map, Ring& ring) const {
    Barrier* full = ring.begin_fill(TILE_BYTES);
    for (int box = 0; box < Features::BOXES; ++box) to.copy(box, map, full, position(tile), head(), batch());
    ring.advance();
  }
};

template <class V>
EMA_DEVICE void respond(const Work<V>& work) {
  using Math = typename V::Math;
  const Args& args = work.args;
  const int base = first_base();
  const bool real[2] = {base < args.num_bases, base + 8 < args.num_bases};
  Ring x = work.x_ring(), grad_y = work.grad_y_ring();
  uint32_t rows[V::CHANNELS / 16][4];
  load_rows(rows, args.io.logit_rows, work.image, padded_channels(args.io.x.channels));
  wait(work.rows_full(), 0);
  for (int i = 0; i < work.count; ++i, x.advance(), grad_y.advance()) {
    float z[POSITIONS / 2];
#pragma unroll
    for (int e = 0; e < POSITIONS / 2; ++e) z[e] = work.bias()[base + e / 2 % 2 * 8];
    x.wait_until_full();
    begin_products();
    work.x(x.slot).add_rows(z, rows);
    commit_products();
    wait_for_products<0>();
    settle(z);
    x.hand_back();
    respond_to<Math>(z, real, work.maxima(), work.totals(), 1);
    grad_y.wait_until_full();  // so all have read the last responsibilities of this stage
    store_positions<Math>(z, Tile<uint16_t, 64>{work.z(x.slot)});
    fence_copies();
    arrive_as_warp(work.z_full(x.slot));
    multiply_by_rows(work, i, grad_y);
  }
}

// grad_y^T responsibilities, of the channels of one warpgroup.
template <class V>
EMA_DEVICE void add_up(const Work<V>& work, int part) {
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS;
  const Args& args = work.args;
  Ring ring = work.grad_y_ring(), x_fill = work.x_ring(), grad_y_fill = ring;
  auto load_x = [&](int i) {
    if (part == 0 && group_thread() == 0 && i < work.count) work.load(i, work.x(x_fill.slot), args.x, x_fill);
  };
  auto load_grad_y = [&](int i) {
    if (part == 0 && group_thread() == 0 && i < work.count)
      work.load(i, work.grad_y(grad_y_fill.slot), args.grad_y, grad_y_fill);
  };
  for (int i = 0; i < args.stages; ++i) load_x(i), load_grad_y(i);
  __syncwarp();
  float sums[COLUMNS / 2] = {};
  for (int i = 0; i < work.count; ++i, ring.advance()) {
    ring.wait_until_full();
    wait(work.z_full(ring.slot), ring.parity());
    begin_products();
    work.grad_y(ring.slot).template add_sums<COLUMNS>(sums, work.z(ring.slot), part * (COLUMNS / 64));
    commit_products();
    load_x(i + args.stages);  // handed back before the responsibilities were made
    __syncwarp();
    wait_for_products<0>();
    ring.hand_back();
    load_grad_y(i + args.stages);
    __syncwarp();
  }
  settle(sums);
  store_sums<typename V::Math, COLUMNS>(sums, args.io.sums, blockIdx.x, part * COLUMNS,
                                        padded_channels(args.io.grad_y.channels));
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1) reconstruct_gradient_kernel(const __grid_constant__ Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  if (threadIdx.x == 0) Work<V>(args, shared).prepare();
  wait_for_predecessors();
  if (threadIdx.x == 0) Work<V>(args, shared).load_value_rows();
  if (threadIdx.x < 64) Work<V>(args, shared).load_bias(threadIdx.x);
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  // bases or sums of 512 channels are 128 registers a thread
  if (group == 0) {
    if constexpr (V::CHANNELS == 512) take_registers<184>();
    respond(Work<V>(args, shared));
  } else {
    if constexpr (V::CHANNELS == 512) give_registers<160>();
    add_up(Work<V>(args, shared), group - 1);
  }
#endif
}

}  // namespace

cudaError_t reconstruct_gradient(const Problem& problem, const MStepPlan& plan, const ReconstructGradient& io,
                                 cudaStream_t stream) {
  Args args{io, plan.splits, plan.slots, problem.heads, problem.positions, problem.num_bases, {}, {}, {}};
  const int width = padded_channels(io.grad_y.channels);
  cudaError_t error = make_tile_map(&args.x, problem, io.x);
  if (error == cudaSuccess) error = make_tile_map(&args.grad_y, problem, io.grad_y);
  if (error == cudaSuccess) error = make_tensor_map(&args.value_rows, as_matrices(problem, io.value_rows, 64, width), 64);
  if (error != cudaSuccess) return error;
  return with_kind(problem, std::max(io.x.channels, io.grad_y.channels), [&](auto kind) {
    using V = ReconstructVariant<decltype(kind)>;
    return launch(reconstruct_gradient_kernel<V>, dim3(problem.images() * plan.splits), dim3(V::THREADS),
                  plan.shared_memory, stream, args);
  });
}

}  // namespace ema::hopper
