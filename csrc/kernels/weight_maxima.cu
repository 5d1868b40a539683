// The largest weights of every image, by which float16 keeps weighted responsibilities in its range.
#include "../device/chunks.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256;

struct Args {
  Weight weight;
  float* maxima;
  int heads, positions;
};

__global__ void __launch_bounds__(THREADS, 1) weight_maxima_kernel(const Args args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  float* of_warp = reinterpret_cast<float*>(shared);
  const int image = blockIdx.x / WEIGHT_PARTS;
  const int64_t part = blockIdx.x % WEIGHT_PARTS, positions = args.positions;
  const int end = static_cast<int>(positions * (part + 1) / WEIGHT_PARTS);
  float largest = 0;
#pragma unroll 4
  for (int n = static_cast<int>(positions * part / WEIGHT_PARTS) + threadIdx.x; n < end; n += THREADS)
    largest = fmaxf(largest, position_weight(args.weight, image, args.heads, n, args.positions));
  for (int other = 16; other > 0; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
  if (lane() == 0) of_warp[warp()] = largest;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < THREADS / 32; ++i) largest = fmaxf(largest, of_warp[i]);
  args.maxima[blockIdx.x] = largest;
}

}  // namespace

cudaError_t weight_maxima(const Problem& problem, const Weight& weight, float* maxima, cudaStream_t stream) {
  return launch(weight_maxima_kernel, dim3(problem.images() * WEIGHT_PARTS), dim3(THREADS),
                THREADS / 32 * static_cast<int>(sizeof(float)), stream,
                Args{weight, maxima, problem.heads, problem.positions});
}

}  // namespace ema
