// What the parts of a Hopper multiprocessor do in a clock, beside what the model of the kernels assumes (docs/hopper.md).
//
// nvcc -std=c++17 -O3 -arch=sm_90a -Icsrc -o experiments benchmarks/hopper/experiments.cu csrc/hopper/tensor_map.cpp
// ./experiments > FILE.csv
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "hopper/ptx.h"

namespace {

using namespace ema;

constexpr int SLICE_BYTES = 128 << 10;  // partial sums of a block, [64, 512] of float32
constexpr int PEER_THREADS = 256, PEER_ROUNDS = 8, MEETINGS = 16;

// Every block adds up its slice of the shared memory of all blocks of the cluster, as sums over a cluster are made.
__global__ void __launch_bounds__(PEER_THREADS, 1) peers_kernel(long long* clocks, float* sink, int cluster, bool rotated) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  auto* values = reinterpret_cast<float4*>(shared);
  constexpr int COUNT = SLICE_BYTES / static_cast<int>(sizeof(float4));
  for (int i = threadIdx.x; i < COUNT; i += PEER_THREADS) values[i] = make_float4(1, 2, 3, 4);
  const int rank = cluster_rank(), slice = COUNT / cluster;
  meet_cluster();
  const long long start = clock64();
  for (int i = 0; i < MEETINGS; ++i) meet_cluster();
  const long long met = clock64();
  float sum = 0;
  for (int round = 0; round < PEER_ROUNDS; ++round)
    for (int q = 0; q < cluster; ++q) {
      const int peer = rotated ? (q + rank) % cluster : q;
#pragma unroll 4
      for (int i = threadIdx.x; i < slice; i += PEER_THREADS) {
        const float4 value = load_peer(values + rank * slice + i, peer);
        sum += value.x + value.y + value.z + value.w;
      }
    }
  meet_cluster();
  if (threadIdx.x == 0) clocks[2 * blockIdx.x] = met - start, clocks[2 * blockIdx.x + 1] = clock64() - met;
  sink[blockIdx.x * PEER_THREADS + threadIdx.x] = sum;
#endif
}

constexpr int COPY_BYTES = 16 << 10, COPY_ROUNDS = 3;

// One thread of every block reads its share again and again, `depth` copies in flight; the first round is not timed.
__global__ void copies_kernel(const unsigned char* data, long long share, long long* clocks, int depth) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  auto* barriers = reinterpret_cast<Barrier*>(shared + depth * COPY_BYTES);
  for (int i = 0; i < depth; ++i) init_barrier(barriers + i, 1);
  publish_barriers();
  const int copies = static_cast<int>(share / COPY_BYTES), total = copies * (COPY_ROUNDS + 1);
  auto start_copy = [&](int i) {
    Barrier* barrier = barriers + i % depth;
    arrive_expecting(barrier, COPY_BYTES);
    copy_bytes(shared + i % depth * COPY_BYTES, data + blockIdx.x * share + i % copies * int64_t{COPY_BYTES}, COPY_BYTES, barrier);
  };
  long long start = 0;
  for (int i = 0; i < total + depth; ++i) {
    if (i == copies) start = clock64();
    if (i >= depth) wait(barriers + i % depth, (i / depth - 1) & 1);
    if (i < total) start_copy(i);
  }
  clocks[blockIdx.x] = clock64() - start;
#endif
}

constexpr int BOX_BYTES = 64 * 128, BOXES = 384, BOXES_AT_ONCE = 8;

// One thread of every block copies boxes of [64 lines][64 columns] along lines of its own, from `column` on.
__global__ void boxes_kernel(const __grid_constant__ TensorMap map, long long* clocks, int boxes, int column) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  auto* barriers = reinterpret_cast<Barrier*>(shared + BOXES_AT_ONCE * BOX_BYTES);
  for (int i = 0; i < BOXES_AT_ONCE; ++i) init_barrier(barriers + i, 1);
  publish_barriers();
  const long long start = clock64();
  for (int i = 0; i < boxes + BOXES_AT_ONCE; ++i) {
    const int slot = i % BOXES_AT_ONCE;
    if (i >= BOXES_AT_ONCE && i - BOXES_AT_ONCE < boxes) wait(barriers + slot, (i / BOXES_AT_ONCE - 1) & 1);
    if (i >= boxes) continue;
    arrive_expecting(barriers + slot, BOX_BYTES);
    copy_box(shared + slot * BOX_BYTES, map, barriers + slot, column + i * 64, static_cast<int>(blockIdx.x) * 64, 0, 0);
  }
  clocks[blockIdx.x] = clock64() - start;
#endif
}

constexpr int PRODUCTS = 512;

// The rate of products of one or more warpgroups: A in registers or in shared memory, B in shared memory.
template <int COLUMNS, bool A_IN_REGISTERS>
__global__ void products_kernel(long long* clocks, float* sink) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  for (int i = threadIdx.x; i < (64 << 10) / 4; i += blockDim.x) reinterpret_cast<uint32_t*>(shared)[i] = 0;
  fence_copies();
  __syncthreads();
  float d[COLUMNS / 2] = {};
  const uint32_t a[4] = {};
  const Operand left = make_operand(shared, 16, 1024), right = make_operand(shared + (16 << 10), 8192, 1024);
  const long long start = clock64();
  begin_products();
#pragma unroll 8
  for (int i = 0; i < PRODUCTS; ++i) {
    if constexpr (A_IN_REGISTERS)
      multiply_group<Dtype::bfloat16, COLUMNS, false>(d, a, right, true);
    else
      multiply_group<Dtype::bfloat16, COLUMNS, true, true>(d, left, right, true);
  }
  commit_products();
  wait_for_products<0>();
  settle(d);
  const long long spent = clock64() - start;
  float sum = 0;
  for (float value : d) sum += value;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0) clocks[blockIdx.x] = spent;
#endif
}

// How many clusters of blocks with as much shared memory as the whole loop takes run at the same time.
int clusters_at_once(int cluster) {
  const void* kernel = reinterpret_cast<const void*>(peers_kernel);
  cudaLaunchAttribute size = {};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(cluster);
  config.blockDim = dim3(PEER_THREADS);
  config.dynamicSmemBytes = 218 << 10;
  config.attrs = &size;
  config.numAttrs = 1;
  int count = 0;
  const bool known = allow_shared_memory(kernel) == cudaSuccess &&
                     cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess;
  return known ? count : -1;
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// The longest of `count` times, `stride` apart.
double slowest(const long long* clocks, int count, int stride = 1, int offset = 0) {
  std::vector<long long> host(static_cast<size_t>(count) * stride);
  check(cudaMemcpy(host.data(), clocks, host.size() * sizeof(long long), cudaMemcpyDeviceToHost), "copy of the times");
  long long most = 0;
  for (int i = 0; i < count; ++i) most = host[i * stride + offset] > most ? host[i * stride + offset] : most;
  return static_cast<double>(most);
}

template <int COLUMNS, bool A_IN_REGISTERS>
void time_products(long long* clocks, float* sink, int multiprocessors) {
  for (int groups : {1, 2, 3}) {
    check(launch(products_kernel<COLUMNS, A_IN_REGISTERS>, dim3(multiprocessors), dim3(128 * groups), 64 << 10, nullptr, clocks,
                 sink), "products");
    check(cudaDeviceSynchronize(), "products");
    std::printf("product,m64n%dk16 A in %s %d warpgroups,%.1f,FLOP/clk/SM\n", COLUMNS,
                A_IN_REGISTERS ? "registers" : "shared memory", groups,
                2. * 64 * COLUMNS * 16 * PRODUCTS * groups / slowest(clocks, multiprocessors));
  }
}

// Lines of `data` that start at multiples of `step` bytes, boxes from `column` on. False if the kernel was stopped.
bool time_boxes(void* data, long long* clocks, int multiprocessors, int step, int column) {
  Matrices matrices;
  matrices.data = data;
  matrices.lines = 64 * multiprocessors, matrices.columns = 64 * BOXES + 64;
  matrices.line_stride = matrices.columns + step / 2;
  TensorMap map;
  check(make_tensor_map(&map, matrices, 64), "tensor map");
  for (int boxes : {BOXES_AT_ONCE, BOXES})
    check(launch(boxes_kernel, dim3(multiprocessors), dim3(1), BOXES_AT_ONCE * (BOX_BYTES + 8), nullptr, map, clocks, boxes,
                 column), "boxes");
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("boxes,[64][64] lines at multiples of %d bytes from column %d,", step, column);
  if (error == cudaSuccess)
    std::printf("%.1f,B/clk/SM\n", 1. * BOXES * BOX_BYTES / slowest(clocks, multiprocessors));
  else
    std::printf("0,%s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was measured counts, whatever the last experiment does
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  if (device.major != 9) {
    std::fprintf(stderr, "compute capability %d.%d: expected 9.0\n", device.major, device.minor);
    return 1;
  }
  const int multiprocessors = device.multiProcessorCount;
  constexpr int64_t DATA_BYTES = int64_t{512} << 20;
  long long* clocks;
  float* sink;
  unsigned char* data;
  check(cudaMalloc(&clocks, 2 * multiprocessors * sizeof(long long)), "memory");
  check(cudaMalloc(&sink, multiprocessors * 1024 * sizeof(float)), "memory");
  check(cudaMalloc(&data, DATA_BYTES), "memory");
  check(cudaMemset(data, 0, DATA_BYTES), "memory");
  std::printf("experiment,setting,value,unit\n");

  for (int cluster : {2, 4, 8, 16}) std::printf("clusters at once,%d blocks,%d,\n", cluster, clusters_at_once(cluster));
  for (int cluster : {2, 4, 8, 16})
    for (bool rotated : {false, true})
      for (bool alone : {false, true}) {
        const int blocks = alone ? cluster : cluster == 16 ? 112 : 128;  // whole clusters within the GPCs
        check(launch_clusters(peers_kernel, dim3(blocks), dim3(PEER_THREADS), cluster, false, SLICE_BYTES, nullptr, clocks,
                              sink, cluster, rotated), "peers");
        check(cudaDeviceSynchronize(), "peers");
        const char* order = rotated ? "rotated" : "same order";
        const char* load = alone ? "one cluster" : "all";
        std::printf("cluster barrier,%d blocks %s,%.0f,clk\n", cluster, load, slowest(clocks, blocks, 2) / MEETINGS);
        std::printf("peers,%d blocks %s %s,%.1f,B/clk/SM\n", cluster, order, load,
                    1. * PEER_ROUNDS * SLICE_BYTES / slowest(clocks, blocks, 2, 1));
      }

  for (int blocks : {1, 16, 64, 128, multiprocessors})
    for (int64_t megabytes : {16, 32, 48, 64, 256})
      for (int depth : {4, 8}) {
        const int64_t share = (megabytes << 20) / blocks / (COPY_BYTES * depth) * (COPY_BYTES * depth);
        if (share == 0 || (blocks == 1 && megabytes > 16)) continue;
        check(launch(copies_kernel, dim3(blocks), dim3(1), depth * COPY_BYTES + 64, nullptr, data, static_cast<long long>(share), clocks,
                     depth), "copies");
        check(cudaDeviceSynchronize(), "copies");
        std::printf("copies,%d blocks %lld MB read again %d in flight,%.1f,B/clk/SM\n", blocks, static_cast<long long>(megabytes),
                    depth, 1. * COPY_ROUNDS * share / slowest(clocks, blocks));
      }

  time_products<32, true>(clocks, sink, multiprocessors);
  time_products<32, false>(clocks, sink, multiprocessors);
  time_products<64, true>(clocks, sink, multiprocessors);
  time_products<64, false>(clocks, sink, multiprocessors);
  time_products<128, false>(clocks, sink, multiprocessors);
  time_products<256, false>(clocks, sink, multiprocessors);

  for (int step : {128, 32, 16})
    if (!time_boxes(data, clocks, multiprocessors, step, 0)) return 1;
  // the last one: a column between two units of 16 bytes is said to stop the kernel, and then nothing more runs
  time_boxes(data, clocks, multiprocessors, 128, 1);
  return 0;
}
