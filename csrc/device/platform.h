// One source for two machines: nvcc compiles the kernels for the GPU, g++ with EMA_SIMT for the CPU (tests/simt).
// Host files include this header too. Kernels are launched through `launch`, never with <<<>>>.
#pragma once
#ifdef EMA_SIMT
#include "simt.h"
#else
#include <cuda_runtime.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#define EMA_DEVICE __device__ __forceinline__

// Dynamic shared memory: `unsigned char name[]`, aligned for every kind of access.
#define EMA_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace ema {

// Whether kernels that this thread launches may start before those in front of them in the stream have ended (compute
// capability 9.0 and later). Each begins with wait_for_predecessors(), so that only its start overlaps them.
inline thread_local bool overlap_launches = false;

// Until all that came before in the stream has ended and can be seen; lets the next kernel start, which waits as well.
EMA_DEVICE void wait_for_predecessors() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the launches of a kernel ask for as much shared memory as the device has, whatever this one needs: two threads that
// launch it with different sizes do not undo each other's. A thread asks once for each kernel and device.
inline cudaError_t allow_shared_memory(const void* kernel) {
  thread_local std::vector<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::pair<const void*, int> asked(kernel, device);
  if (std::find(allowed.begin(), allowed.end(), asked) != allowed.end()) return cudaSuccess;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) allowed.push_back(asked);
  return error;
}

// Launches `kernel` in clusters of `cluster` neighbouring blocks, all of whose blocks run at the same time, and with
// `cooperative` all blocks of the grid do. Returns the error of the launch alone; an error is also taken off the runtime's
// record, so that nobody else trips over it later.
template <class... P, class... A>
cudaError_t launch_clusters(void (*kernel)(P...), dim3 grid, dim3 block, int cluster, bool cooperative, int shared_bytes,
                            cudaStream_t stream, A... args) {
  constexpr int without_asking = 48 << 10, portable_cluster = 8;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > without_asking) error = allow_shared_memory(function);
  if (error == cudaSuccess && cluster > portable_cluster)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    cudaLaunchAttribute attributes[3] = {};
    config.attrs = attributes;
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    if (cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (overlap_launches && !cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    std::tuple<P...> values(args...);
    error = std::apply(
        [&](auto&... value) {
          void* pointers[] = {&value...};
          return cudaLaunchKernelExC(&config, function, pointers);
        },
        values);
  }
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, A... args) {
  return launch_clusters(kernel, grid, block, 1, false, shared_bytes, stream, args...);
}

}  // namespace ema
#endif
