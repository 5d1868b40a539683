// The instructions of csrc/device/ptx.h on the CPU, with the checks that the hardware would answer with garbage.
#pragma once
#include "simt.h"
#include "simt_watch.h"

namespace ema {
namespace simt_ptx {

using simt::Place;

inline void check_shared(const void* p, const char* what, const Place& place) {
  const simt::Block& block = *simt::self->warp->block;
  const auto* byte = static_cast<const unsigned char*>(p);
  if (byte < block.shared || byte + 16 > block.shared + block.shared_bytes)
    simt::fail(place, "%s at byte %td of %d bytes of shared memory", what, byte - block.shared, block.shared_bytes);
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0)
    simt::fail(place, "%s at byte %td of shared memory: expected a multiple of 16", what, byte - block.shared);
}

inline void check_global(const void* p, const char* what, const Place& place) {
  simt::check_waited(what, place);
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) simt::fail(place, "%s from %p: expected a multiple of 16", what, p);
}

struct MatrixRow {
  const void* row;
  uint32_t* r;
};

template <bool TRANSPOSED>
void load_matrices(uint32_t (&r)[4], const void* row, const Place& place) {
  check_shared(row, "a matrix row", place);
  simt::has_read(row, 16);
  MatrixRow item{row, r};
  simt::collective("load_matrices", ~0u, place, item, [](MatrixRow** lanes) {
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      for (int row = 0; row < 8; ++row) std::memcpy(matrix[row], lanes[8 * i + row]->row, 16);
      for (int lane = 0; lane < 32; ++lane) {
        int g = lane / 4, t = lane % 4 * 2;
        uint32_t low = TRANSPOSED ? matrix[t][g] : matrix[g][t], high = TRANSPOSED ? matrix[t + 1][g] : matrix[g][t + 1];
        lanes[lane]->r[i] = low | high << 16;
      }
    }
  });
}

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// How many values of an operand lie in a register, and what they are. Float bits of value `i` of a register:
struct Bf16 {
  static constexpr int VALUES = 2;
  static uint32_t decode(uint32_t bits, int i) { return i == 0 ? bits << 16 : bits & 0xFFFF0000; }
};
struct Fp16 {
  static constexpr int VALUES = 2;
  static uint32_t decode(uint32_t bits, int i) {
    uint32_t half = i == 0 ? bits & 0xFFFF : bits >> 16;
    float scaled = __uint_as_float((half & 0x7FFF) << 13) * 0x1p112f;
    uint32_t magnitude = __float_as_uint(scaled) | (scaled >= 65536 ? 0x7F800000 : 0);  // infinity and NaN
    return magnitude | (half & 0x8000) << 16;
  }
};
struct Tf32 {
  static constexpr int VALUES = 1;
  static uint32_t decode(uint32_t bits, int) { return bits & 0xFFFFE000; }
};

// D += A B of a whole warp. The sum over k is taken first, in float32. Every step is a loop that compilers vectorise:
// most of the time of a test is spent here.
template <class Format>
void multiply(Product** lanes) {
  using Row = float __attribute__((vector_size(32)));
  constexpr int VALUES = Format::VALUES;
  uint32_t a_bits[32 * 4], b_bits[2 * 4 * 8];  // of lane and register; of register, t and g
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(a_bits + 4 * lane, lanes[lane]->a, 4 * sizeof(uint32_t));
    for (int e = 0; e < 2; ++e) b_bits[32 * e + lane % 4 * 8 + lane / 4] = lanes[lane]->b[e];
  }
  float a[VALUES][32 * 4];
  alignas(32) float b[VALUES][2 * 4 * 8];
  for (int v = 0; v < VALUES; ++v) {
    for (int i = 0; i < 128; ++i) a[v][i] = __uint_as_float(Format::decode(a_bits[i], v));
    for (int i = 0; i < 64; ++i) b[v][i] = __uint_as_float(Format::decode(b_bits[i], v));
  }
  alignas(32) float d[2][8][8];  // rows g and g + 8
  for (int half = 0; half < 2; ++half) {
    Row sums[8] = {};
    for (int e = 0; e < 2; ++e)
      for (int t = 0; t < 4; ++t)
        for (int v = 0; v < VALUES; ++v) {
          const Row right = *reinterpret_cast<const Row*>(b[v] + 32 * e + 8 * t);
          for (int g = 0; g < 8; ++g) sums[g] += a[v][4 * (4 * g + t) + 2 * e + half] * right;
        }
    for (int g = 0; g < 8; ++g) *reinterpret_cast<Row*>(d[half][g]) = sums[g];
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) lanes[lane]->d[e] += d[e / 2][lane / 4][lane % 4 * 2 + e % 2];
}

}  // namespace simt_ptx

// A copy happens when it is waited for, not before: until then the target is NaN. One never waited for never happens.
inline void copy_async_16(void* shared, const void* global, int bytes, simt::Place place = simt::Place::here()) {
  simt_ptx::check_shared(shared, "a copy", place);
  if (bytes < 0 || bytes > 16) simt::fail(place, "a copy of %d bytes: expected 0 to 16", bytes);
  if (bytes > 0) simt_ptx::check_global(global, "a copy", place);
  std::memset(shared, 0xFF, 16);
  simt::self->copies.push_back({shared, global, bytes});
}

inline void copy_async_commit() {
  simt::Thread& thread = *simt::self;
  size_t grouped = 0;
  for (size_t size : thread.group_sizes) grouped += size;
  thread.group_sizes.push_back(thread.copies.size() - grouped);
}

inline void copy_async_wait(int pending) {
  simt::Thread& thread = *simt::self;
  const size_t groups = thread.group_sizes.size(), left = std::min(std::max(pending, 0), 7);
  if (groups <= left) return;
  size_t done = 0;
  for (size_t i = 0; i < groups - left; ++i) done += thread.group_sizes[i];
  for (size_t i = 0; i < done; ++i) {
    const simt::Copy& copy = thread.copies[i];
    std::memset(copy.shared, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.shared, copy.global, copy.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + done);
  thread.group_sizes.erase(thread.group_sizes.begin(), thread.group_sizes.end() - left);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, simt::Place place = simt::Place::here()) {
  simt_ptx::load_matrices<false>(r, row, place);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, simt::Place place = simt::Place::here()) {
  simt_ptx::load_matrices<true>(r, row, place);
}

inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          simt::Place place = simt::Place::here()) {
  simt_ptx::Product item{d, a, {b0, b1}};
  simt::collective("multiply_bf16", ~0u, place, item, simt_ptx::multiply<simt_ptx::Bf16>);
}
inline void multiply_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          simt::Place place = simt::Place::here()) {
  simt_ptx::Product item{d, a, {b0, b1}};
  simt::collective("multiply_fp16", ~0u, place, item, simt_ptx::multiply<simt_ptx::Fp16>);
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          simt::Place place = simt::Place::here()) {
  simt_ptx::Product item{d, a, {b0, b1}};
  simt::collective("multiply_tf32", ~0u, place, item, simt_ptx::multiply<simt_ptx::Tf32>);
}

inline uint32_t to_tf32(float value) {
  uint32_t bits = __float_as_uint(value);
  return std::isfinite(value) ? (bits + 0x1000) & 0xFFFFE000 : bits;
}

inline float exp2_approximate(float x) {
  float power = std::exp2(x);
  return power < 0x1p-126f ? 0.f : power;
}
inline float reciprocal_approximate(float x) { return 1 / x; }

inline uint4 load_16(const void* global, simt::Place place = simt::Place::here()) {
  simt_ptx::check_global(global, "a load of 16 bytes", place);
  uint4 value;
  std::memcpy(&value, global, sizeof value);
  return value;
}

}  // namespace ema
