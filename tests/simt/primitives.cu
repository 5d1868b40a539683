// Every word of the shim and every instruction behind a name, in a kernel of its own.
#include "device/ptx.h"

namespace {

using ema::launch;

// One warp; lane l brings a[4 l ..] and b[2 l ..] and leaves d[4 l ..], to which the product is added.
using Multiply = void (*)(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, simt::Place);

template <Multiply multiply>
__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  const uint32_t left[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  float sums[4] = {d[4 * lane], d[4 * lane + 1], d[4 * lane + 2], d[4 * lane + 3]};
  multiply(sums, left, b[2 * lane], b[2 * lane + 1], simt::Place::here());
  for (int e = 0; e < 4; ++e) d[4 * lane + e] = sums[e];
}

// `rows`: 32 rows of 8 numbers of 16 bits; r [32, 4].
template <bool TRANSPOSED>
__global__ void matrices_kernel(const uint4* rows, uint32_t* r) {
  EMA_SHARED(shared);
  const int lane = threadIdx.x;
  reinterpret_cast<uint4*>(shared)[lane] = ema::load_16(rows + lane);
  __syncthreads();
  uint32_t mine[4];
  if (TRANSPOSED)
    ema::load_matrices_transposed(mine, shared + 16 * lane);
  else
    ema::load_matrices(mine, shared + 16 * lane);
  for (int i = 0; i < 4; ++i) r[4 * lane + i] = mine[i];
}

// Three groups of a copy each of `bytes` bytes; what shared memory holds when `pending` groups may be unfinished.
__global__ void copy_kernel(const unsigned char* source, unsigned char* seen, int bytes, int pending) {
  EMA_SHARED(shared);
  for (int i = 0; i < 3; ++i) {
    ema::copy_async_16(shared + 16 * i, bytes > 0 ? source + 16 * i : nullptr, bytes);
    ema::copy_async_commit();
  }
  ema::copy_async_wait(pending);
  for (int i = 0; i < 48; ++i) seen[i] = shared[i];
}

__global__ void numbers_kernel(const float* in, float* tf32, float* power, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  tf32[i] = __uint_as_float(ema::to_tf32(in[i]));
  power[i] = ema::exp2_approximate(in[i]);
}

__global__ void shuffle_kernel(int* out) {  // [6, 64]
  const int lane = threadIdx.x % 32;
  const int results[6] = {__shfl_sync(~0u, lane, 5),          __shfl_sync(~0u, lane, lane / 2, 8),
                          __shfl_xor_sync(~0u, lane, 9),      __shfl_xor_sync(~0u, lane, 4, 4),
                          __shfl_down_sync(~0u, lane, 3, 16), __shfl_up_sync(~0u, lane, 3)};
  for (int i = 0; i < 6; ++i) out[64 * i + threadIdx.x] = results[i];
}

// Where every thread is, by its number; and the sum over blocks of what shared memory saw.
__global__ void place_kernel(int* places, int* sum) {
  EMA_SHARED(shared);
  int& total = *reinterpret_cast<int*>(shared);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  if (thread == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, thread);
  __syncthreads();
  places[block * threads + thread] = block * 1000 + total;
  if (thread == threads - 1) atomicAdd(sum, total);
}

}  // namespace

extern "C" {
int multiply_bf16(const uint32_t* a, const uint32_t* b, float* d) {
  return launch(multiply_kernel<ema::multiply_bf16>, dim3(1), dim3(32), 0, nullptr, a, b, d);
}
int multiply_fp16(const uint32_t* a, const uint32_t* b, float* d) {
  return launch(multiply_kernel<ema::multiply_fp16>, dim3(1), dim3(32), 0, nullptr, a, b, d);
}
int multiply_tf32(const uint32_t* a, const uint32_t* b, float* d) {
  return launch(multiply_kernel<ema::multiply_tf32>, dim3(1), dim3(32), 0, nullptr, a, b, d);
}
int load_matrices(const uint4* rows, uint32_t* r) {
  return launch(matrices_kernel<false>, dim3(1), dim3(32), 512, nullptr, rows, r);
}
int load_matrices_transposed(const uint4* rows, uint32_t* r) {
  return launch(matrices_kernel<true>, dim3(1), dim3(32), 512, nullptr, rows, r);
}
int copy(const unsigned char* source, unsigned char* seen, int bytes, int pending) {
  return launch(copy_kernel, dim3(1), dim3(1), 48, nullptr, source, seen, bytes, pending);
}
int numbers(const float* in, float* tf32, float* power, int count) {
  return launch(numbers_kernel, dim3((count + 63) / 64), dim3(64), 0, nullptr, in, tf32, power, count);
}
int shuffles(int* out) { return launch(shuffle_kernel, dim3(1), dim3(64), 0, nullptr, out); }
int places(int* places, int* sum) {
  return launch(place_kernel, dim3(3, 2, 2), dim3(5, 4, 2), 4, nullptr, places, sum);
}
int refused(int threads, int shared_bytes) {
  return launch(shuffle_kernel, dim3(1), dim3(threads), shared_bytes, nullptr, static_cast<int*>(nullptr));
}
}
