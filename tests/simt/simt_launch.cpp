// Launches: the blocks of a grid over a few processors, and what the host code asks the runtime for.
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "simt_machine.h"

namespace simt {
namespace {

int processors() {
  const char* text = std::getenv("EMA_SIMT_THREADS");
  if (text != nullptr && *text != 0) return std::max(1, std::atoi(text));
  return std::thread::hardware_concurrency() > 1 ? 2 : 1;
}

cudaError_t check(dim3 grid, dim3 block, int cluster, int shared_bytes) {
  constexpr int most_shared = 227 << 10, largest_cluster = 16;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (cluster < 1 || cluster > largest_cluster || grid.x % cluster != 0) return cudaErrorInvalidClusterSize;
  return shared_bytes < 0 || shared_bytes > most_shared ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, int cluster, bool cooperative, int shared_bytes,
                const std::function<void()>& kernel) {
  static std::mutex one_launch;
  static std::vector<std::unique_ptr<Machine>> machines;
  std::lock_guard<std::mutex> lock(one_launch);
  if (cudaError_t error = check(grid, block, cluster, shared_bytes)) return error;
  blockDim = block;
  gridDim = grid;
  const int blocks = static_cast<int>(grid.x * grid.y * grid.z), together = cooperative ? blocks : cluster;
  const Launch launch{grid, static_cast<int>(block.x * block.y * block.z), shared_bytes, cluster, together, &kernel,
                      Order(), __builtin_frame_address(0)};
  const std::vector<int> numbers = launch.order(blocks / together, 0);
  const size_t workers = std::min<size_t>(processors(), numbers.size());
  while (machines.size() < workers) machines.push_back(std::make_unique<Machine>());
  std::atomic<size_t> taken{0};
  auto work = [&](Machine* mine) {
    machine = mine;
    for (size_t i; (i = taken++) < numbers.size();) mine->run(launch, numbers[i]);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < workers; ++i) others.emplace_back(work, machines[i].get());
  work(machines[0].get());
  for (std::thread& other : others) other.join();
  return cudaSuccess;
}

}  // namespace simt

extern "C" const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidClusterSize: return "invalid cluster size";
    default: return "another error";
  }
}
extern "C" cudaError_t cudaSetDevice(int ordinal) { return ordinal == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
