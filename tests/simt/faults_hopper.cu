// A small sound kernel of Hopper's kind and, picked by a number, the same with one fault each. It has one block (or a
// cluster of two) of 256 threads and writes 256 numbers.
#include <array>

#include "hopper/ptx.h"

namespace {

using namespace ema;

enum Fault {
  sound,
  no_wait_for_boxes,
  no_wait_for_products,
  no_meeting_before_release,
  no_wait_for_release,
  wrong_major,
  wrong_step,
  no_wait_for_reads,
  too_many_arrivals,
  arrival_missed,
  fewer_bytes,
  more_bytes,
  no_init,
  no_begin,
  three_warps,
  other_operands,
  products_left,
  box_outside,
  box_misaligned,
  box_between_units,
  operand_outside,
  operand_between,
  other_count,
  copy_left,
  store_left,
  no_publish,
  no_fence,
  no_fence_of_memory,
  no_fence_before_copy,
  no_fence_after_read,
  peer_has_left,
  no_such_peer,
  count_without_cooperation,
};

constexpr int TILES = 5, SLOTS = 2, BOX = 64 * 128, STAGED = SLOTS * BOX, BARRIERS = STAGED + 1024, BYTES = BARRIERS + 32;

// One thread copies boxes, a warpgroup sums their squares A A and stores of them what every thread has first.
__global__ void ring(const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap out, Fault fault) {
  EMA_SHARED(shared);
  auto* filled = reinterpret_cast<Barrier*>(shared + BARRIERS);
  Barrier* released = filled + SLOTS;
  auto* staged = reinterpret_cast<float*>(shared + STAGED);
  const int thread = threadIdx.x;
  if (thread == 0 && fault != no_init) {
    for (int i = 0; i < SLOTS; ++i) init_barrier(filled + i, fault == arrival_missed ? 2 : 1);
    for (int i = 0; i < SLOTS; ++i) init_barrier(released + i, 1);
    if (fault != no_publish) publish_barriers();
  }
  __syncthreads();
  if (thread >= 128) {
    give_registers<40>();
    if (thread != 128) return;
    for (int i = 0; i < TILES; ++i) {
      const int slot = i % SLOTS;
      if (i >= SLOTS && fault != no_wait_for_release) wait(released + slot, (i / SLOTS - 1) & 1);
      arrive_expecting(filled + slot, BOX + (fault == fewer_bytes ? -16 : fault == more_bytes ? 16 : 0));
      if (fault == too_many_arrivals) arrive(filled + slot);
      const int shift = fault == box_outside && i == 3 ? STAGED : fault == box_misaligned ? 64 : 0;
      copy_box(shared + BOX * slot + shift, map, filled + slot, 64 * i + (fault == box_between_units ? 4 : 0), 0, 0, 0);
    }
    return;
  }
  float sums[32];
  for (int i = 0; i < TILES; ++i) {
    const int slot = i % SLOTS;
    if (fault == copy_left && i == TILES - 1) break;
    if (fault != no_wait_for_boxes) wait(filled + slot, i / SLOTS & 1);
    const int shift = fault == operand_outside && i == 1 ? BOX : fault == operand_between ? 128 : 0;
    const Operand left = make_operand(shared + BOX * slot + shift, 0, fault == wrong_step ? 512 : 1024);
    const Operand right = make_operand(shared + BOX * slot, BOX, 1024);
    if (fault != no_begin) begin_products();
    if (fault != three_warps || thread < 96)
      for (int k = 0; k < 4; ++k) {
        const int other = fault == other_operands && thread == 127 ? 32 : 0;
        const Operand left_k = moved(left, 32 * k ^ other), right_k = moved(right, 2048 * k);
        if (fault == wrong_major)
          multiply_group<Dtype::bfloat16, 64, true, true>(sums, moved(left, 2048 * k), right_k, i > 0 || k > 0);
        else
          multiply_group<Dtype::bfloat16, 64, false, true>(sums, left_k, right_k, i > 0 || k > 0);
      }
    commit_products();
    if (fault != no_wait_for_products) wait_for_products<0>();
    if (fault != no_meeting_before_release) meet(1, fault == other_count && thread < 32 ? 64 : 128);
    if (thread == 0) arrive(released + slot);
  }
  if (fault == products_left) commit_products();
  if (fault == no_wait_for_products) {
    staged[thread] = sums[0], staged[128 + thread] = sums[31];
    wait_for_products<0>();
  } else {
    staged[thread] = sums[0], staged[128 + thread] = sums[31];
  }
  if (fault != no_fence) fence_copies();
  meet(2, 128);
  if (thread == 0) {
    store_box(out, staged, 0, 0, 0, 0);
    commit_stores();
    if (fault != no_wait_for_reads && fault != store_left) wait_for_reads<0>();
  }
  meet(2, 128);
  staged[thread] = -1;
  meet(2, 128);
  if (thread == 0 && fault == no_wait_for_reads) wait_for_reads<0>();
}

// What the threads write to memory comes to shared memory as a copy, over what they wrote there.
__global__ void echo(float* out, Fault fault) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  auto* barrier = reinterpret_cast<Barrier*>(shared + 1024);
  const int thread = threadIdx.x;
  if (thread == 0) {
    init_barrier(barrier, 1);
    publish_barriers();
  }
  out[thread] = static_cast<float>(thread);
  fence_copies_of_memory();
  if (fault == no_fence_of_memory) out[thread] = 1;
  numbers[thread] = -1;
  if (fault != no_fence_before_copy) fence_copies();
  __syncthreads();
  const float other = numbers[thread ^ 32];
  if (fault != no_fence_before_copy && fault != no_fence_after_read) fence_copies();
  __syncthreads();
  if (thread == 0) {
    arrive_expecting(barrier, 1024);
    copy_bytes(numbers, out, 1024, barrier);
  }
  wait(barrier, 0);
  out[thread] = 2 * numbers[thread] + other;
}

// Blocks of a cluster of two read each other's numbers, and count.
__global__ void pair(float* out, unsigned* count, Fault fault) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, rank = cluster_rank();
  numbers[thread] = static_cast<float>(thread + 1000 * rank);
  meet_cluster();
  if (rank == 0) out[thread] = load_peer(numbers + thread, fault == no_such_peer ? 2 : 1);
  if (fault != peer_has_left || rank == 0) meet_cluster();
  if (rank == 0 && fault == peer_has_left) out[thread] += load_peer(numbers + thread, 1);
  if (fault == count_without_cooperation && thread == 0) {
    count_up(count);
    wait_for_count(count, 2);
  }
}

}  // namespace

extern "C" {
int run_ring(const float*, float* out, int fault) {
  alignas(16) static std::array<uint16_t, 64 * 64 * TILES> numbers;  // whole numbers in bf16
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<uint16_t>(__float_as_uint(static_cast<float>(i % 13) - static_cast<float>(i % 7)) >> 16);
  Matrices tiles, results;
  tiles.data = numbers.data(), results.data = out;
  tiles.lines = 64, tiles.columns = tiles.line_stride = 64 * TILES;
  results.lines = 8, results.columns = results.line_stride = 64;  // of 16 bits
  TensorMap map, result;
  if (cudaError_t error = make_tensor_map(&map, tiles, 64)) return error;
  if (cudaError_t error = make_tensor_map(&result, results, 8)) return error;
  return launch(ring, dim3(1), dim3(256), BYTES, nullptr, map, result, static_cast<Fault>(fault));
}
int run_echo(const float*, float* out, int fault) {
  return launch(echo, dim3(1), dim3(256), 1032, nullptr, out, static_cast<Fault>(fault));
}
int run_pair(const float*, float* out, int fault) {
  static unsigned count;
  count = 0;
  return launch_clusters(pair, dim3(4), dim3(256), 2, false, 1024, nullptr, out, &count, static_cast<Fault>(fault));
}
}
