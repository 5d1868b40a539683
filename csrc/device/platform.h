// One source for two machines: nvcc compiles the kernels for the GPU, g++ with EMA_SIMT for the CPU (tests/simt).
// Host files include this header too. Kernels are launched through `launch`, never with <<<>>>.
#pragma once
#ifdef EMA_SIMT
#include "simt.h"
#else
#include <cuda_runtime.h>

#include <tuple>

#define EMA_DEVICE __device__ __forceinline__

// Dynamic shared memory: `unsigned char name[]`, aligned for every kind of access.
#define EMA_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace ema {

// Launches `kernel` and returns the error of the launch alone. An error is also taken off the runtime's record, so that
// nobody else trips over it later.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, A... args) {
  constexpr int without_asking = 48 << 10;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > without_asking)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) {
    std::tuple<P...> values(args...);
    error = std::apply(
        [&](auto&... value) {
          void* pointers[] = {&value...};
          return cudaLaunchKernel(function, grid, block, pointers, static_cast<size_t>(shared_bytes), stream);
        },
        values);
  }
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace ema
#endif
