// reconstruct_gradient where rows of the gradient of y, with positions fastest, start anywhere: warpgroup 0 multiplies it by
// the value rows, which stay in shared memory. Those behind it read it, each its channels, and multiply it by stored
// responsibilities; there is no room for the features, of which these would be made, beside tiles that are shifted.
#include "any_rows.h"
#include "gradient_block.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

struct Args {
  RowsGradient io;
  int splits, stages, heads, positions;
  TensorMap value_rows, responsibilities;
};

#if EMA_HOPPER
// What a block works on, and where it lies in shared memory.
template <class V>
struct Work : GradientBlock<Args> {
  using Layout = RowsGradientLayout;
  using Features = FeatureTile<V>;
  static constexpr int ROWS_BYTES = GradientLayout::rows_bytes(V::CHANNELS);
  static constexpr int TILE_BYTES = GradientLayout::stage_bytes(V::CHANNELS);  // of features
  static constexpr int STAGE_BYTES = Layout::stage_bytes(V::CHANNELS);
  using GradientBlock<Args>::GradientBlock;

  EMA_DEVICE Barrier* rows_full() const { return reinterpret_cast<Barrier*>(shared); }
  EMA_DEVICE Ring ring() const { return {rows_full() + 1, args.stages}; }
  EMA_DEVICE unsigned char* value_rows() const { return shared + Layout::BARRIER_BYTES; }
  EMA_DEVICE Features grad_y(int stage) const { return {value_rows() + ROWS_BYTES + stage * STAGE_BYTES}; }
  EMA_DEVICE unsigned char* z(int stage) const { return grad_y(stage).memory + TILE_BYTES; }
  // What a warp of the warpgroup number `part` reads.
  EMA_DEVICE AnyRows<V, GROUP_WARPS * V::M_GROUPS> rows(int part) const {
    return {args.io.grad_y, head(), batch(), args.positions, GROUP_WARPS * part + opaque(threadIdx.x) % GROUP / 32};
  }

  // One thread, before the kernel waits for others.
  EMA_DEVICE void prepare() const {
    prefetch_map(args.value_rows);
    prefetch_map(args.responsibilities);
    init_barrier(rows_full(), 1);
    ring().init(V::THREADS / 32, GROUP_WARPS * V::M_GROUPS);
  }
  // The same thread, afterwards.
  EMA_DEVICE void load_value_rows() const {
    arrive_expecting(rows_full(), ROWS_BYTES);
    load_rows(value_rows(), args.value_rows, rows_full(), V::CHANNELS);
  }
};

template <class V>
EMA_DEVICE void multiply_tiles(const Work<V>& work) {
  Ring ring = work.ring();
  wait(work.rows_full(), 0);
  for (int i = 0; i < work.count; ++i, ring.advance()) {
    ring.wait_until_full();
    multiply_by_rows(work, i, ring);
  }
}

// grad_y^T responsibilities, of the channels of one warpgroup.
template <class V>
EMA_DEVICE void add_up(const Work<V>& work, int part) {
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS;
  const Args& args = work.args;
  Ring ring = work.ring(), fill = ring;
  auto after = [&](int slot) { return slot + 1 == args.stages ? 0 : slot + 1; };
  auto read = [&](int i) {
    if (part == 0 && group_thread() == 0 && i < work.count)
      copy_box(work.z(fill.slot), args.responsibilities, fill.begin_fill(GradientLayout::TILE_BYTES), 0,
               work.position(i), work.head(), work.batch());
    __syncwarp();
    // the last tile needs the first units of the one behind it
    if (i <= work.count) {
      fill.wait_until_empty();
      work.rows(part).read(work.grad_y(fill.slot).memory, work.position(i), i < work.count);
    }
    copy_async_commit();
    fill.advance();
  };
  auto shift = [&](int i, int slot) {
    if (i >= work.count) return;
    copy_async_wait(args.stages - 3);  // those of tile i + 1 have come
    __syncwarp();
    work.rows(part).shift(work.grad_y(slot).memory, work.grad_y(after(slot)).memory);
    fence_copies();
    __syncwarp();
    ring.hand_over(slot);
  };
  for (int i = 0; i < args.stages - 1; ++i) read(i);
  shift(0, 0);
  float sums[COLUMNS / 2] = {};
  for (int i = 0; i < work.count; ++i, ring.advance()) {
    ring.wait_until_full();
    begin_products();
    work.grad_y(ring.slot).template add_sums<COLUMNS>(sums, work.z(ring.slot), part * (COLUMNS / 64));
    commit_products();
    read(i + args.stages - 1);  // over the last tile, which all have handed back or soon will
    shift(i + 1, after(ring.slot));
    wait_for_products<0>();
    ring.hand_back();
  }
  settle(sums);
  store_sums<typename V::Math, COLUMNS>(sums, args.io.sums, blockIdx.x, part * COLUMNS,
                                        padded_channels(args.io.grad_y.channels));
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1) rows_gradient_kernel(const __grid_constant__ Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  if (threadIdx.x == 0) Work<V>(args, shared).prepare();
  wait_for_predecessors();
  if (threadIdx.x == 0) Work<V>(args, shared).load_value_rows();
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  if (group == 0)
    multiply_tiles(Work<V>(args, shared));
  else
    add_up(Work<V>(args, shared), group - 1);
#endif
}

}  // namespace

cudaError_t rows_gradient(const Problem& problem, const MStepPlan& plan, const RowsGradient& io, cudaStream_t stream) {
  Args args{io, plan.splits, plan.slots, problem.heads, problem.positions, {}, {}};
  const int width = padded_channels(io.grad_y.channels), lines = GradientLayout::POSITIONS;
  cudaError_t error = make_tensor_map(&args.value_rows, as_matrices(problem, io.value_rows, 64, width), 64);
  if (error == cudaSuccess)
    error = make_tensor_map(&args.responsibilities, as_matrices(problem, io.responsibilities, problem.positions, 64),
                            lines);
  if (error != cudaSuccess) return error;
  return with_kind(problem, io.grad_y.channels, [&](auto kind) -> cudaError_t {
    using V = ReconstructVariant<decltype(kind)>;
    if constexpr (!V::POSITIONS_FASTEST) return cudaErrorInvalidValue;
    else return launch(rows_gradient_kernel<V>, dim3(problem.images() * plan.splits), dim3(V::THREADS),
                       plan.shared_memory, stream, args);
  });
}

}  // namespace ema::hopper
