// Small sound kernels and, picked by a number, the same with one fault each. Every kernel has one block of 256 threads
// and writes 256 numbers.
#include "device/ptx.h"

namespace {

enum Fault {
  sound,
  no_barrier_before_reading,
  no_barrier_before_reuse,
  no_wait,
  wait_for_too_few,
  wrong_stride,
  wrong_fragment_order,
  divergent_barrier,
  barrier_missed,
  divergent_lanes,
  lane_has_left,
  shuffle_from_outside,
  misaligned_copy,
  misaligned_matrix,
  matrix_outside,
  shared_write_outside,
  shared_read_outside,
  global_read_outside,
  global_write_outside,
};

constexpr int TILES = 4, THREADS = 256, TILE_BYTES = THREADS * 16, SLOTS = 2;

// Sums over tiles of what another warp copied: out[i] = sum over tiles of in[tile, 255 - i, 0].
__global__ void pipeline(const float4* in, float* out, Fault fault) {
  EMA_SHARED(shared);
  const int thread = threadIdx.x;
  auto load = [&](int tile) {
    if (tile < TILES)
      ema::copy_async_16(shared + tile % SLOTS * TILE_BYTES + thread * 16, in + tile * THREADS + thread, 16);
    ema::copy_async_commit();
  };
  float sum = 0;
  load(0);
  for (int tile = 0; tile < TILES; ++tile) {
    load(tile + 1);
    if (fault != no_wait) ema::copy_async_wait(fault == wait_for_too_few ? 2 : 1);
    if (fault != no_barrier_before_reading) __syncthreads();
    const int stride = fault == wrong_stride ? 3 : 4, from = fault == shared_read_outside && tile == 3 ? -1 : thread;
    sum += reinterpret_cast<const float*>(shared + tile % SLOTS * TILE_BYTES)[(THREADS - 1 - from) * stride];
    if (fault != no_barrier_before_reuse) __syncthreads();
  }
  out[thread] = sum;
}

// Every warp: A [16, 16] B [16, 8] with A and B of whole numbers in bf16.
__global__ void product(float* out, Fault fault) {
  EMA_SHARED(shared);
  auto* tile = reinterpret_cast<uint16_t*>(shared);  // [16, 16] and behind it [8, 16]
  const int thread = threadIdx.x, lane = thread % 32;
  auto bf16 = [](int value) { return static_cast<uint16_t>(__float_as_uint(static_cast<float>(value)) >> 16); };
  tile[thread] = bf16(thread % 37);
  if (thread < 128) tile[256 + thread] = bf16(thread % 11 - thread % 7);
  __syncthreads();
  uint32_t a[4], b[4];
  const int shift = fault == misaligned_matrix ? 1 : 0;
  ema::load_matrices(a, tile + lane % 16 * 16 + lane / 16 * 8 + shift);
  ema::load_matrices(b, tile + 256 + (fault == matrix_outside ? 128 : 0) + lane % 8 * 16 + lane / 8 % 2 * 8);
  if (fault == wrong_fragment_order) std::swap(a[1], a[2]);
  float d[4] = {};
  ema::multiply_bf16(d, a, b[0], b[1]);
  out[thread] = d[0] + 3 * d[1] + 5 * d[2] + 7 * d[3];
}

// Threads that do not all do the same.
__global__ void meetings(float* out, Fault fault) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, lane = thread % 32;
  if (fault == lane_has_left && lane == 3) return;
  numbers[fault == shared_write_outside && thread == 255 ? 256 : thread] = 1;
  if (fault == divergent_barrier && thread < 32)
    __syncthreads();
  else if (fault != barrier_missed || thread != 7)
    __syncthreads();
  else
    __syncwarp();
  if (fault == divergent_lanes && lane < 16)
    __syncwarp(0xFFFF);
  else
    __syncwarp();
  const unsigned mask = fault == shuffle_from_outside ? (lane < 16 ? 0xFFFFu : 0xFFFF0000u) : ~0u;
  const float other = __shfl_xor_sync(mask, numbers[thread], 16);
  out[thread] = other + numbers[THREADS - 1 - thread];
}

__global__ void edges(const float4* in, float* out, Fault fault) {
  EMA_SHARED(shared);
  const int thread = threadIdx.x;
  const auto* source = reinterpret_cast<const unsigned char*>(in + TILES * THREADS - THREADS + thread);
  const int shift = fault == global_read_outside ? 16 : fault == misaligned_copy ? 8 : 0;
  ema::copy_async_16(shared + thread * 16, source + (thread < 255 && fault == global_read_outside ? 0 : shift), 16);
  ema::copy_async_commit();
  ema::copy_async_wait(0);
  out[thread + (fault == global_write_outside && thread == 255 ? 1 : 0)] = reinterpret_cast<float*>(shared)[4 * thread];
}

}  // namespace

extern "C" {
int run_pipeline(const float4* in, float* out, int fault) {
  return ema::launch(pipeline, dim3(1), dim3(THREADS), SLOTS * TILE_BYTES, nullptr, in, out, static_cast<Fault>(fault));
}
int run_product(const float4*, float* out, int fault) {
  return ema::launch(product, dim3(1), dim3(THREADS), 768, nullptr, out, static_cast<Fault>(fault));
}
int run_meetings(const float4*, float* out, int fault) {
  return ema::launch(meetings, dim3(1), dim3(THREADS), THREADS * 4, nullptr, out, static_cast<Fault>(fault));
}
int run_edges(const float4* in, float* out, int fault) {
  return ema::launch(edges, dim3(1), dim3(THREADS), TILE_BYTES, nullptr, in, out, static_cast<Fault>(fault));
}
}
