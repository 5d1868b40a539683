// The first convolution of the unit, applied to bases and their sums instead of the features: K rows and not N.
#include "between_iterations.h"

namespace ema {
namespace {

using Args = Convolve;

template <class Math, bool BACKWARD>
__global__ void __launch_bounds__(Args::THREADS, 1) convolve_kernel(const Args args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  convolve_tile<Math, BACKWARD>(shared, args);
}

template <bool BACKWARD>
cudaError_t convolve(const Problem& problem, Args args, cudaStream_t stream) {
  args.channels = problem.channels;
  args.num_bases = problem.num_bases;
  const dim3 grid(problem.images() * (padded_bases(problem.num_bases) / Args::BASES) *
                  (padded_channels(problem.channels) / Args::CHANNELS));
  return with_math(problem, [&](auto math) {
    return launch(convolve_kernel<decltype(math), BACKWARD>, grid, dim3(Args::THREADS), Args::SHARED_BYTES, stream,
                  args);
  });
}

}  // namespace

cudaError_t convolve_bases(const Problem& problem, const Convolution& convolution, const void* rows, float factor,
                           void* logit_rows, float* logit_bias, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = rows;
  args.factor = factor;
  args.convolved_rows = logit_rows;
  args.logit_bias = logit_bias;
  return convolve<true>(problem, args, stream);
}

cudaError_t convolve_gradient(const Problem& problem, const Convolution& convolution, const void* rows,
                              const float* powers, void* convolved_rows, float* grad_mass, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = rows;
  args.factor = 1;
  args.convolved_rows = convolved_rows;
  args.powers = powers;
  args.grad_mass = grad_mass;
  return convolve<true>(problem, args, stream);
}

cudaError_t convolve_sums(const Problem& problem, const Convolution& convolution, const PackedSums& packed,
                          float* sums, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = packed.rows;
  args.powers = packed.powers;
  args.mass = packed.mass;
  args.sums = sums;
  return convolve<false>(problem, args, stream);
}

}  // namespace ema
