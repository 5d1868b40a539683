// The end of an iteration behind a folded convolution, and the start of the next, in one launch: the four kernels from
// partial sums to convolved bases one after the other, and between them the blocks of one image meet.
#include "../kernels/between_iterations.h"
#include "hopper.h"
#include "ptx.h"

namespace ema::hopper {
namespace {

struct Args {
  EndIteration io;
  Division division;
  int channels, num_bases;
};

// A cluster has the 64 bases of an image; a block the tiles of 64 channels, and as many bases as others as lines.
template <class Math>
__global__ void __launch_bounds__(LINE_THREADS, 1) end_iteration_kernel(const __grid_constant__ Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  wait_for_predecessors();
  const EndIteration& io = args.io;
  const int blocks = padded_channels(args.channels) / Convolve::CHANNELS;
  constexpr int PARTS = Convolve::BASES / LINE_WARPS;
  auto for_lines = [&](auto body) {
    for (int part = cluster_rank(); part < PARTS; part += blocks) {
      body(Place(shared, LINE_WARPS, args.num_bases, args.channels, blockIdx.x / blocks * PARTS + part));
      __syncthreads();
    }
  };
  Convolve convolve{};
  convolve.convolution = io.convolution;
  convolve.channels = args.channels;
  convolve.num_bases = args.num_bases;

  if (io.partials.sums != nullptr) {
    for_lines([&](const Place& place) {
      pack_sums<Math>(place, io.partials, args.channels, args.num_bases, io.packed);
    });
    meet_cluster();
  }
  convolve.rows = io.packed.rows;
  convolve.powers = io.packed.powers;
  convolve.mass = io.packed.mass;
  convolve.sums = io.convolved_sums;
  convolve_tile<Math, false>(shared, convolve);
  meet_cluster();
  Partials partials;
  partials.sums = io.convolved_sums;
  partials.masses = io.packed.mass;
  partials.sum_splits = partials.mass_splits = 1;
  for_lines([&](const Place& place) {
    normalize_sums<Math>(place, partials, args.channels, args.num_bases, args.division, io.next);
  });
  if (io.logit_rows == nullptr) return;
  meet_cluster();
  convolve.rows = io.next.value_rows;
  convolve.factor = args.division.scale;
  convolve.convolved_rows = io.logit_rows;
  convolve.logit_bias = io.logit_bias;
  convolve_tile<Math, true>(shared, convolve);
#endif
}

}  // namespace

cudaError_t end_iteration(const Problem& problem, const EndIteration& io, cudaStream_t stream) {
  const Args args{io, {problem.scale, problem.eps, problem.eps_max}, problem.channels, problem.num_bases};
  const int cluster = padded_channels(problem.channels) / Convolve::CHANNELS;
  const dim3 grid(problem.images() * (padded_bases(problem.num_bases) / Convolve::BASES) * cluster);
  static_assert(LINE_THREADS == Convolve::THREADS);
  static_assert(4 * (LINE_WARPS + LINE_WARPS * (64 * END_ITERATION_BLOCKS + LINE_GAP)) <= Convolve::SHARED_BYTES);
  return with_half_math(problem, [&](auto math) {
    return launch_clusters(end_iteration_kernel<decltype(math)>, grid, dim3(LINE_THREADS), cluster, false,
                           Convolve::SHARED_BYTES, stream, args);
  });
}

}  // namespace ema::hopper
