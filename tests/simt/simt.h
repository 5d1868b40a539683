// CUDA C++ on the CPU: every thread of a block is a fiber, block after block; the blocks of a cluster, and all blocks of
// a cooperative launch, run together. Test code only.
//
// A fiber runs until it must meet others or wait, then the next one runs, so the kernel sees one legal order of events:
// EMA_SIMT_ORDER=forward|reverse|shuffled picks the order of blocks and of the warps in a block, and no result may depend
// on it. What the hardware does beside the threads (copies of boxes, products of warpgroups) happens at once in forward
// order, as late as the waits allow in reverse order, and at random else; then a warp, or a block of several, is also
// slower than all others. EMA_SIMT_THREADS blocks (default: 2, or 1 on a
// single processor) run at a time.
//
// What it catches: threads that meet at different places or never, shared memory read before it was written (it starts as
// NaN) or written beyond its size, copies that nobody waited for, wrong fragments, what boxes and products read and nobody
// fenced (simt_watch.h); with AddressSanitizer also every access outside an allocation. What it does not see: memory
// ordering among threads, bank conflicts, registers, the rounding of tensor cores.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>
// The headers of the 16-bit types need the words below as CUDA means them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "fiber.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static_assert(false, "shared memory comes from EMA_SHARED, which is poisoned and guarded");

namespace simt {

// A line of a kernel.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Place& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// Threads that meet at a barrier with a name.
struct NamedBarrier {
  int threads = 0, waiting = 0;
  Place place{};
};

struct Block;
struct Thread;
// Blocks that see each other's shared memory; a block without a cluster is one of its own.
struct Cluster {
  Block* blocks;
  int size;
  int alive, waiting;  // threads
};

struct Warp;
struct Warpgroup;
struct Block {
  uint3 index;
  Cluster* cluster;
  int rank;     // in the cluster
  int alive;    // threads that have not left the kernel
  int waiting;  // of them, at the barrier
  Thread* threads;
  Warp* warps;
  int warp_count;
  Warpgroup* warpgroups;
  unsigned char* shared;
  int shared_bytes;
  NamedBarrier barriers[16];
  // of every word of shared memory: a thread and its fences so far, 0: nobody (simt_watch.h)
  std::vector<unsigned> writers, readers;
  std::vector<std::pair<const void*, const Thread*>> unpublished;  // barriers of Hopper, and who has initialised them

  bool contains(const void* p, int bytes) const {
    const auto* byte = static_cast<const unsigned char*>(p);
    return byte >= shared && byte + bytes <= shared + shared_bytes;
  }
};

struct Warp {
  Block* block;
  Thread* threads;
  unsigned alive, ready, waiting;  // lanes: not yet left, able to run, waiting for other lanes
  void* brought[32];               // by the waiting lanes to their meeting
};

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};

// A copy from shared memory to memory, in two steps that are waited for one by one.
struct Store {
  std::function<void()> read, write;  // empty when done
  Place place;
  bool waited;  // for the read
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int lane;
  Warp* warp;
  const char* operation;  // the last one for which threads had to meet or to wait, and its line
  Place place;
  unsigned mask;  // lanes that meet, 0: others
  std::string (*describe)(const void*);  // what it waits for, null: nothing to tell
  const void* awaited;
  bool has_waited;                  // for the kernels in front of its own, if they may still run
  std::vector<Copy> copies;         // issued and not done, oldest first
  std::vector<size_t> group_sizes;  // of those that are committed
  std::vector<Store> stores;        // since the last commit
  std::vector<std::vector<Store>> store_groups;
  size_t products;                     // of the warpgroup that this thread started
  std::vector<size_t> product_groups;  // their number at every commit that was not waited for
  bool products_begun;
  unsigned fences, memory_fences;  // between what it wrote and the hardware beside the threads
};

// The thread that runs.
extern __thread Thread* self __attribute__((tls_model("initial-exec")));

// Prints what went wrong, in which block and thread, and aborts.
[[noreturn, gnu::format(printf, 2, 3)]] void fail(const Place& place, const char* format, ...);

// Before a kernel reads or writes memory.
inline void check_waited(const char* what, const Place& place) {
  if (!self->has_waited) fail(place, "%s before the thread has waited for the kernels in front of its own", what);
}

// Waits for the lanes of `mask`; true for the last to arrive, which did not wait and goes on while the others are ready.
bool meet_lanes(const char* operation, unsigned mask, const Place& place);
void meet_block(const Place& place);
void meet_some(int barrier, int threads, const Place& place);
void meet_cluster(const Place& place);

// Others run until something happened to `awaited`.
void sleep(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place);
// Others run, until this one's turn comes again.
void yield(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place);
void happened(const void* awaited);

// Whether what the hardware does beside the threads happens now, in the order that was asked for.
bool at_once();
// Whether all blocks of the grid run together.
bool all_blocks_run();
// Happens at a moment of the machine's choice, the latest being when no thread can go on. `target` must wait for it.
void later(const Block* target, const Place& place, std::function<void()> action);

// The lanes of `mask` meet, and the last to arrive calls `all` with what each of them brought, indexed by lane.
template <class Item, class All>
void collective(const char* operation, unsigned mask, const Place& place, Item& item, All all) {
  void** brought = self->warp->brought;
  brought[self->lane] = &item;
  if (!meet_lanes(operation, mask, place)) return;
  Item* items[32];
  for (int lane = 0; lane < 32; ++lane) items[lane] = mask >> lane & 1 ? static_cast<Item*>(brought[lane]) : nullptr;
  all(items);
}

// Runs all blocks of a grid. The errors are those of a device with compute capability 9.0.
cudaError_t run(dim3 grid, dim3 block, int cluster, bool cooperative, int shared_bytes,
                const std::function<void()>& kernel);

template <class T>
struct Shuffle {
  T value, result;
  int source;
};

template <class T>
T shuffle(unsigned mask, T value, int source, const Place& place) {
  Shuffle<T> item{value, value, source};
  collective("a shuffle", mask, place, item, [&](Shuffle<T>** items) {
    for (int lane = 0; lane < 32; ++lane) {
      if (items[lane] == nullptr) continue;
      Shuffle<T>* from = items[items[lane]->source];
      if (from == nullptr) fail(place, "lane %d shuffles from lane %d, which takes no part", lane, items[lane]->source);
      items[lane]->result = from->value;
    }
  });
  return item.result;
}

// The first lane of the segment of `width` lanes.
inline int segment(int width) { return self->lane & ~(width - 1); }

}  // namespace simt

#define threadIdx simt::self->index
#define blockIdx simt::self->warp->block->index
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using std::max;
using std::min;

inline void __syncthreads(simt::Place place = simt::Place::here()) { simt::meet_block(place); }
inline void __syncwarp(unsigned mask = ~0u, simt::Place place = simt::Place::here()) {
  simt::meet_lanes("__syncwarp", mask, place);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Place place = simt::Place::here()) {
  return simt::shuffle(mask, value, simt::segment(width) + (source & (width - 1)), place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, simt::Place place = simt::Place::here()) {
  int source = simt::self->lane ^ bits;
  return simt::shuffle(mask, value, source < simt::segment(width) + width ? source : simt::self->lane, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, simt::Place place = simt::Place::here()) {
  int source = simt::self->lane + by;
  return simt::shuffle(mask, value, source < simt::segment(width) + width ? source : simt::self->lane, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, simt::Place place = simt::Place::here()) {
  int source = simt::self->lane - by;
  return simt::shuffle(mask, value, source >= simt::segment(width) ? source : simt::self->lane, place);
}

// Integers only: float atomics would make the order of blocks show in the result.
inline int atomicAdd(int* target, int value) { return __atomic_fetch_add(target, value, __ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned* target, unsigned value) {
  return __atomic_fetch_add(target, value, __ATOMIC_SEQ_CST);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline float rsqrtf(float value) { return 1.f / std::sqrt(value); }

// As nvcc does; a struct that a call returns would be stored unseen by simt_watch.h. Not optimised, all would be too large.
#ifdef __OPTIMIZE__
#define EMA_DEVICE inline __attribute__((always_inline))
#else
#define EMA_DEVICE inline
#endif
#define EMA_SHARED(name) unsigned char* const name = simt::self->warp->block->shared

namespace ema {

// Kernels follow each other here, whatever may overlap on a GPU; but all threads of one that might must wait.
inline thread_local bool overlap_launches = false;
inline void wait_for_predecessors() { simt::self->has_waited = true; }

template <class... P, class... A>
cudaError_t launch_clusters(void (*kernel)(P...), dim3 grid, dim3 block, int cluster, bool cooperative, int shared_bytes,
                            cudaStream_t, A... args) {
  const auto thread = [&, overlap = overlap_launches] {
    simt::self->has_waited = !overlap;
    kernel(args...);
    if (!simt::self->has_waited) simt::fail(simt::Place::here(), "the kernel never waited for its predecessors");
  };
  return simt::run(grid, block, cluster, cooperative, shared_bytes, std::cref(thread));
}
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, A... args) {
  return launch_clusters(kernel, grid, block, 1, false, shared_bytes, stream, args...);
}

}  // namespace ema
