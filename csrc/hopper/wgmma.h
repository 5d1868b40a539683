// The words of the products of a warpgroup, for every number of columns that a kernel uses. Part of ptx.h.
#pragma once

// Operands of the instruction as text, %0 to %(n - 1), and as the registers d[i].
#define EMA_TEN(p) "%" #p "0,%" #p "1,%" #p "2,%" #p "3,%" #p "4,%" #p "5,%" #p "6,%" #p "7,%" #p "8,%" #p "9,"
#define EMA_NAMES_16 EMA_TEN() "%10,%11,%12,%13,%14,%15"
#define EMA_NAMES_32 EMA_TEN() EMA_TEN(1) EMA_TEN(2) "%30,%31"
#define EMA_NAMES_64 EMA_TEN() EMA_TEN(1) EMA_TEN(2) EMA_TEN(3) EMA_TEN(4) EMA_TEN(5) "%60,%61,%62,%63"
#define EMA_NAMES_128 \
  EMA_TEN() EMA_TEN(1) EMA_TEN(2) EMA_TEN(3) EMA_TEN(4) EMA_TEN(5) EMA_TEN(6) EMA_TEN(7) EMA_TEN(8) EMA_TEN(9) \
  EMA_TEN(10) EMA_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127"
#define EMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EMA_D16(i) EMA_D4(i), EMA_D4(i + 4), EMA_D4(i + 8), EMA_D4(i + 12)
#define EMA_D32(i) EMA_D16(i), EMA_D16(i + 16)
#define EMA_D64(i) EMA_D32(i), EMA_D32(i + 32)
#define EMA_D128(i) EMA_D64(i), EMA_D64(i + 64)

// The operands behind the registers of D: A and B in shared memory, the predicate, and whether A and B are transposed.
// %(n) and so on are spelled by the caller.
#define EMA_WGMMA_SHARED(columns, type, registers, names, a, b, p, ta, tb) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, " a ", " b \
               ", p, 1, 1, " ta ", " tb ";\n}" \
               : registers \
               : "l"(left), "l"(right), "r"(static_cast<int>(accumulate)), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED))
#define EMA_WGMMA_REGISTERS(columns, type, registers, names, a0, a1, a2, a3, b, p, tb) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, {" a0 ", " a1 ", " a2 \
               ", " a3 "}, " b ", p, 1, 1, " tb ";\n}" \
               : registers \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(static_cast<int>(accumulate)), \
                 "n"(B_TRANSPOSED))

#define EMA_GROUP_PRODUCT(columns, count, s0, s1, s2, s3, s4, r0, r1, r2, r3, r4, r5, r6) \
  template <Dtype DTYPE, bool A_TRANSPOSED, bool B_TRANSPOSED> \
  struct GroupProduct<DTYPE, columns, A_TRANSPOSED, B_TRANSPOSED> { \
    EMA_DEVICE static void run(float (&d)[count], Operand left, Operand right, bool accumulate) { \
      if constexpr (DTYPE == Dtype::bfloat16) \
        EMA_WGMMA_SHARED(columns, "bf16", EMA_D##count(0), EMA_NAMES_##count, s0, s1, s2, s3, s4); \
      else \
        EMA_WGMMA_SHARED(columns, "f16", EMA_D##count(0), EMA_NAMES_##count, s0, s1, s2, s3, s4); \
    } \
    EMA_DEVICE static void run(float (&d)[count], const uint32_t (&left)[4], Operand right, bool accumulate) { \
      if constexpr (DTYPE == Dtype::bfloat16) \
        EMA_WGMMA_REGISTERS(columns, "bf16", EMA_D##count(0), EMA_NAMES_##count, r0, r1, r2, r3, r4, r5, r6); \
      else \
        EMA_WGMMA_REGISTERS(columns, "f16", EMA_D##count(0), EMA_NAMES_##count, r0, r1, r2, r3, r4, r5, r6); \
    } \
  }

namespace ema {

EMA_GROUP_PRODUCT(32, 16, "%16", "%17", "%18", "%19", "%20", "%16", "%17", "%18", "%19", "%20", "%21", "%22");
EMA_GROUP_PRODUCT(64, 32, "%32", "%33", "%34", "%35", "%36", "%32", "%33", "%34", "%35", "%36", "%37", "%38");
EMA_GROUP_PRODUCT(128, 64, "%64", "%65", "%66", "%67", "%68", "%64", "%65", "%66", "%67", "%68", "%69", "%70");
EMA_GROUP_PRODUCT(256, 128, "%128", "%129", "%130", "%131", "%132", "%128", "%129", "%130", "%131", "%132", "%133",
                  "%134");

}  // namespace ema

#undef EMA_TEN
#undef EMA_NAMES_16
#undef EMA_NAMES_32
#undef EMA_NAMES_64
#undef EMA_NAMES_128
#undef EMA_D4
#undef EMA_D16
#undef EMA_D32
#undef EMA_D64
#undef EMA_D128
#undef EMA_WGMMA_SHARED
#undef EMA_WGMMA_REGISTERS
#undef EMA_GROUP_PRODUCT
