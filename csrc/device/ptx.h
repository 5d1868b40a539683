// Every instruction that C++ has no word for, behind a name. tests/simt/simt_ptx.h has the same names for the CPU.
//
// Fragments of a warp's product D[16, 8] += A[16, k] B[k, 8]; lane l has g = l / 4 and t = l % 4:
//   D             d[0..1] = row g, columns 2t and 2t + 1; d[2..3] the same of row g + 8
//   A, 16 bits    a[0] = row g, k 2t and 2t + 1; a[1] row g + 8; a[2] and a[3] the same at k + 8
//   B, 16 bits    b0 = k 2t and 2t + 1 of column g; b1 at k + 8
//   A, tf32       a[0] = row g, k t; a[1] row g + 8; a[2] and a[3] the same at k + 4
//   B, tf32       b0 = k t of column g; b1 at k + 4
#pragma once
#include <cstdint>

#include "platform.h"

#ifdef EMA_SIMT
#include "simt_ptx.h"
#else
namespace ema {

EMA_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Starts a copy of 16 bytes: `bytes` (0 to 16) of them from `global`, the rest zero. With 0, `global` is not read.
EMA_DEVICE void copy_async_16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes) : "memory");
}

// The copies since the last commit become a group.
EMA_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int pending>
EMA_DEVICE void copy_async_wait_for() {
  asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
}

// Waits until at most `pending` of this thread's groups are unfinished; the instruction knows 0 to 7, more waits for 7.
EMA_DEVICE void copy_async_wait(int pending) {
  switch (pending) {
    case 0: return copy_async_wait_for<0>();
    case 1: return copy_async_wait_for<1>();
    case 2: return copy_async_wait_for<2>();
    case 3: return copy_async_wait_for<3>();
    case 4: return copy_async_wait_for<4>();
    case 5: return copy_async_wait_for<5>();
    case 6: return copy_async_wait_for<6>();
    default: return copy_async_wait_for<7>();
  }
}

// Four 8 x 8 matrices of 16 bits from shared memory: lane l gives the address of row l % 8 of matrix l / 8. Matrix i
// arrives in r[i]: row g, columns 2t and 2t + 1.
EMA_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// The same, every matrix transposed: r[i] has rows 2t and 2t + 1 of column g.
EMA_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

EMA_DEVICE void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

EMA_DEVICE void multiply_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// k = 8, of which the hardware reads the upper 19 bits of every operand.
EMA_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounded to nearest, ties away from zero.
EMA_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// 2^x within 2 units in the last place; results below the normal range are 0.
EMA_DEVICE float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// 1 / x within 1 unit in the last place, for x in the normal range; without the branch of a division.
EMA_DEVICE float reciprocal_approximate(float x) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
  return reciprocal;
}

// 16 aligned bytes that nobody writes while the kernel runs.
EMA_DEVICE uint4 load_16(const void* global) {
  uint4 value;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(__cvta_generic_to_global(global)));
  return value;
}

}  // namespace ema
#endif
