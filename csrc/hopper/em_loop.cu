// All iterations and the reconstruction in one launch: features come by boxes, sums of an image are exchanged between the
// blocks of a cluster, through shared memory, and new bases go to all of them at once.
#include "loop_e_step.h"
#include "loop_m_step.h"
#include "loop_reconstruction.h"

namespace ema::hopper {
namespace {

constexpr int THREADS = 384, ZERO_THREADS = 128;

template <class Shape>
__global__ void __launch_bounds__(THREADS, 1)
    em_loop_kernel(const __grid_constant__ LoopMaps maps, const __grid_constant__ LoopArgs args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  if (threadIdx.x == 0) {
    prefetch_map(maps.x);
    prefetch_map(maps.first_rows);
    prefetch_map(maps.rows);
    prefetch_map(maps.y);
    prefetch_map(maps.y_lines);
    LoopBlock<Shape>(shared, args).init();
  }
  __syncwarp();
  meet_cluster();
  wait_for_predecessors();
  auto block = [&] { return LoopBlock<Shape>(shared, args); };
  auto group = [] { return __shfl_sync(~0u, opaque(threadIdx.x) / GROUP, 0); };
  if (group() == 0) {
    take_registers<184>();
    LoopEStep<Shape>(block(), args).run();
  } else {
    give_registers<160>();
    LoopMStep<Shape>(block(), args, maps, group() - 1).run();
    LoopReconstruction<Shape>(block(), args, maps, group() - 1).run();
  }
#endif
}

// Clusters of an image count here what they have summed.
__global__ void __launch_bounds__(ZERO_THREADS, 1) zero_counts_kernel(unsigned* counts, int count) {
  wait_for_predecessors();
  for (int i = threadIdx.x; i < count; i += blockDim.x) counts[i] = 0;
}

cudaError_t make_maps(LoopMaps* maps, const Problem& problem, const LoopPlan& plan, const EmLoop& io) {
  const int bases = 64 / plan.cluster;
  Matrices rows;
  rows.data = io.rows;
  rows.batch = problem.images() * plan.clusters;
  rows.lines = 64;
  rows.columns = loop_width(problem.channels);
  rows.line_stride = rows.columns;
  rows.batch_stride = int64_t{rows.lines} * rows.columns;
  const Matrices y = as_matrices(problem, io.y);
  const Matrices first_rows = as_matrices(problem, io.logit_rows, 64, padded_channels(problem.channels));
  cudaError_t error = make_tile_map(&maps->x, problem, io.x);
  if (error == cudaSuccess) error = make_tensor_map(&maps->y, y, 64);
  if (error == cudaSuccess) error = make_tensor_map(&maps->y_lines, y, 8);
  if (error == cudaSuccess) error = make_tensor_map(&maps->first_rows, first_rows, bases);
  if (error == cudaSuccess) error = make_tensor_map(&maps->rows, rows, bases);
  return error;
}

}  // namespace

cudaError_t em_loop(const Problem& problem, const LoopPlan& plan, const EmLoop& io, cudaStream_t stream) {
  LoopMaps maps;
  if (cudaError_t error = make_maps(&maps, problem, plan, io)) return error;
  const LoopArgs args{io,
                      plan,
                      problem.heads,
                      problem.positions,
                      problem.channels,
                      problem.num_bases,
                      problem.num_iters,
                      problem.scale,
                      problem.eps,
                      problem.eps_max};
  const bool shared_images = plan.clusters > 1;
  if (shared_images)
    if (cudaError_t error = launch(zero_counts_kernel, dim3(1), dim3(ZERO_THREADS), 0, stream, io.counts,
                                   problem.images() * plan.cluster))
      return error;
  const dim3 grid(problem.images() * plan.clusters * plan.cluster), block(THREADS);
  auto run = [&](auto kind) {
    using Shape = LoopShape<decltype(kind)>;
    return launch_clusters(em_loop_kernel<Shape>, grid, block, plan.cluster, shared_images, Shape::BYTES, stream, maps,
                           args);
  };
  return loop_width(problem.channels) == 512 ? with_kind_of<512>(problem, run) : with_kind_of<256>(problem, run);
}

}  // namespace ema::hopper
