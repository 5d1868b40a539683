// What device/platform.h asks the CUDA runtime for, on a machine without one: these functions write down their calls.
#include <cstdio>
#include <initializer_list>

#include "device/platform.h"

namespace {
int device = 0;
bool refuses = false;
}  // namespace

extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* current) {
  *current = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int of) {
  *value = 1000 * (of + 1);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  std::printf(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize ? "allow %d; " : "large clusters %d; ", value);
  return refuses ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void** arguments) {
  std::printf("launch %d with %zu bytes", *static_cast<int*>(arguments[0]), config->dynamicSmemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) std::printf(", cluster %u", attribute.val.clusterDim.x);
    if (attribute.id == cudaLaunchAttributeCooperative) std::printf(", cooperative");
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) std::printf(", overlaps");
  }
  return cudaSuccess;
}
}

void kernel(int) {}
void another(int) {}

int main() {
  int number = 0;
  auto run = [&](void (*which)(int), int shared_bytes, int cluster = 1, bool cooperative = false) {
    const cudaError_t error =
        ema::launch_clusters(which, dim3(2), dim3(32), cluster, cooperative, shared_bytes, nullptr, ++number);
    std::printf(error == cudaSuccess ? "\n" : "error %d\n", error);
  };
  refuses = true;
  run(kernel, 50000);
  refuses = false;
  for (int of : {0, 0, 1, 0}) {
    device = of;
    run(kernel, 50000);
  }
  run(another, 50000);
  run(kernel, 1000);
  ema::overlap_launches = true;
  run(kernel, 1000, 8);
  run(kernel, 1000, 16, true);
}
