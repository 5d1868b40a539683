// The names of csrc/hopper/ptx.h on the CPU, with the checks that the hardware would answer with garbage or with a hang.
#pragma once
#include "simt_ptx.h"
#include "simt_warpgroup.h"
#include "simt_watch.h"

namespace ema {

// A phase has ended when no arrivals and no bytes are missing. 0xFF.. is one that nobody has initialised.
struct Barrier {
  uint16_t arrivals, missing;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Barrier) == 8);

namespace simt_hopper {

using simt::Block;
using simt::Place;

// The barrier, if it is one of this block's.
void check_barrier(const Barrier* barrier, const Place& place);
void init_barrier(Barrier* barrier, int arrivals, const Place& place);
void publish_barriers();
void arrive(Barrier* barrier, int bytes, const Place& place);
void arrive_at(Barrier* barrier, int rank, const Place& place);
bool has_ended(const Barrier* barrier, uint32_t parity, const Place& place);
void wait(const Barrier* barrier, uint32_t parity, const Place& place);

void copy_box(unsigned blocks, void* shared, const TensorMap& map, Barrier* barrier, const int (&start)[4],
              const Place& place);
void copy_bytes(void* shared, const void* global, int bytes, Barrier* barrier, const Place& place);
void store_box(const TensorMap& map, const void* shared, const int (&start)[4], const Place& place);

struct StoredLine {
  void* line;
  const uint32_t* r;
};
void store_matrices_transposed(StoredLine** lanes);

// What lies at the same place of another block's shared memory.
const void* at_peer(const void* shared, int bytes, int rank, const Place& place);

template <class Item>
Item load_peer(const Item* shared, int rank, const Place& place) {
  Item value;
  std::memcpy(&value, at_peer(shared, sizeof value, rank, place), sizeof value);
  return value;
}

void count_up(unsigned* number);
void wait_for_count(const unsigned* number, unsigned target, const Place& place);

}  // namespace simt_hopper

inline void init_barrier(Barrier* barrier, int arrivals, simt::Place place = simt::Place::here()) {
  simt_hopper::init_barrier(barrier, arrivals, place);
}
inline void publish_barriers() { simt_hopper::publish_barriers(); }
inline void arrive(Barrier* barrier, simt::Place place = simt::Place::here()) {
  simt_hopper::arrive(barrier, 0, place);
}
inline void arrive_expecting(Barrier* barrier, int bytes, simt::Place place = simt::Place::here()) {
  simt_hopper::arrive(barrier, bytes, place);
}
inline bool has_ended(Barrier* barrier, uint32_t parity, simt::Place place = simt::Place::here()) {
  return simt_hopper::has_ended(barrier, parity, place);
}
inline void wait(Barrier* barrier, uint32_t parity, simt::Place place = simt::Place::here()) {
  simt_hopper::wait(barrier, parity, place);
}

inline void meet(int barrier, int threads, simt::Place place = simt::Place::here()) {
  simt::meet_some(barrier, threads, place);
}

inline void prefetch_map(const TensorMap& map, simt::Place place = simt::Place::here()) {
  if (map.data == nullptr) simt::fail(place, "a map that nobody has made");
}
inline void copy_box(void* shared, const TensorMap& map, Barrier* barrier, int column, int line, int head, int batch,
                     simt::Place place = simt::Place::here()) {
  simt_hopper::copy_box(1u << simt::self->warp->block->rank, shared, map, barrier, {column, line, head, batch}, place);
}
inline void copy_box_to(uint16_t blocks, void* shared, const TensorMap& map, Barrier* barrier, int column, int line,
                        int head, int batch, simt::Place place = simt::Place::here()) {
  simt_hopper::copy_box(blocks, shared, map, barrier, {column, line, head, batch}, place);
}
inline void copy_bytes(void* shared, const void* global, int bytes, Barrier* barrier,
                       simt::Place place = simt::Place::here()) {
  simt_hopper::copy_bytes(shared, global, bytes, barrier, place);
}
inline void store_box(const TensorMap& map, const void* shared, int column, int line, int head, int batch,
                      simt::Place place = simt::Place::here()) {
  simt_hopper::store_box(map, shared, {column, line, head, batch}, place);
}
inline void commit_stores() { simt::commit_stores(); }
template <int PENDING>
inline void wait_for_reads() {
  simt::wait_for_reads(PENDING);
}
inline void fence_copies() { simt::fence_copies(); }
inline void fence_copies_of_memory() { simt::fence_copies_of_memory(); }

using Operand = simt::SharedMatrix;
inline Operand make_operand(const void* shared, int leap, int step, int line = 128) {
  return {static_cast<const unsigned char*>(shared), leap, step, line};
}
inline Operand moved(Operand operand, int bytes) {
  operand.start += bytes;
  return operand;
}

inline void begin_products() { simt::self->products_begun = true; }
inline void commit_products() { simt::commit_products(); }
template <int PENDING>
inline void wait_for_products(simt::Place place = simt::Place::here()) {
  simt::wait_for_products(PENDING, place);
}
template <int COUNT>
inline void settle(float (&)[COUNT]) {}

template <Dtype DTYPE, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED>
inline void multiply_group(float (&d)[COLUMNS / 2], Operand a, Operand b, bool accumulate,
                           simt::Place place = simt::Place::here()) {
  static_assert(DTYPE != Dtype::float32 && COLUMNS % 8 == 0 && COLUMNS <= 256);
  simt::start_product({a, b, COLUMNS, DTYPE == Dtype::float16, A_TRANSPOSED, B_TRANSPOSED, accumulate, place}, d, nullptr);
}
template <Dtype DTYPE, int COLUMNS, bool B_TRANSPOSED>
inline void multiply_group(float (&d)[COLUMNS / 2], const uint32_t (&a)[4], Operand b, bool accumulate,
                           simt::Place place = simt::Place::here()) {
  static_assert(DTYPE != Dtype::float32 && COLUMNS % 8 == 0 && COLUMNS <= 256);
  simt::start_product({{}, b, COLUMNS, DTYPE == Dtype::float16, false, B_TRANSPOSED, accumulate, place}, d, a);
}

inline void store_matrices_transposed(void* line, const uint32_t (&r)[4], simt::Place place = simt::Place::here()) {
  simt_ptx::check_shared(line, "a matrix line", place);
  simt::wrote(line, 16, *simt::self);
  simt_hopper::StoredLine item{line, r};
  simt::collective("store_matrices_transposed", ~0u, place, item, simt_hopper::store_matrices_transposed);
}

// Exponents by float32, where they are 120 larger; all numbers but 0 are in the normal range of float16.
inline uint2 widen_e4m3(uint32_t four) {
  uint16_t halves[4];
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = four >> 8 * i & 0xFF, magnitude = bits & 0x7F;
    const uint32_t number = __float_as_uint(__uint_as_float(magnitude << 20) * 0x1p120f);
    const uint32_t half = magnitude == 0 ? 0 : magnitude == 0x7F ? 0x7FFF : (number >> 13) - (112 << 10);
    halves[i] = static_cast<uint16_t>(half | (bits & 0x80) << 8);
  }
  uint2 result;
  std::memcpy(&result, halves, sizeof result);
  return result;
}

template <int COUNT>
inline void take_registers(simt::Place place = simt::Place::here()) {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
  simt::meet_lanes("take_registers", ~0u, place);
}
template <int COUNT>
inline void give_registers(simt::Place place = simt::Place::here()) {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256);
  simt::meet_lanes("give_registers", ~0u, place);
}
inline int opaque(int value) { return value; }

inline void meet_cluster(simt::Place place = simt::Place::here()) { simt::meet_cluster(place); }
inline int cluster_rank() { return simt::self->warp->block->rank; }
inline void arrive_at(Barrier* barrier, int rank, simt::Place place = simt::Place::here()) {
  simt_hopper::arrive_at(barrier, rank, place);
}
inline float load_peer(const float* shared, int rank, simt::Place place = simt::Place::here()) {
  return simt_hopper::load_peer(shared, rank, place);
}
inline uint2 load_peer(const uint2* shared, int rank, simt::Place place = simt::Place::here()) {
  return simt_hopper::load_peer(shared, rank, place);
}
inline float4 load_peer(const float4* shared, int rank, simt::Place place = simt::Place::here()) {
  return simt_hopper::load_peer(shared, rank, place);
}

inline void count_up(unsigned* number) { simt_hopper::count_up(number); }
inline void wait_for_count(const unsigned* number, unsigned target, simt::Place place = simt::Place::here()) {
  simt_hopper::wait_for_count(number, target, place);
}

}  // namespace ema
