// How a warp multiplies tiles, one policy per kind of product, and the exponential that goes with it.
//
// Accumulators are blocks of 16 x 8. A thread (group = lane / 4, member = lane % 4) holds of each block the elements
// [0] (group, 2 member), [1] (group, 2 member + 1), [2] and [3] the same of row group + 8, for every policy.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tile.h"

namespace ema {

EMA_DEVICE int lane() { return threadIdx.x % 32; }
EMA_DEVICE int warp() { return threadIdx.x / 32; }

// The largest power of two up to |value|, within 2^-126 to 2^126; 1 for 0. An exact factor and divisor.
EMA_DEVICE float power_of_two(float value) {
  uint32_t exponent = __float_as_uint(value) & 0x7F800000u;
  exponent = min(max(exponent, 1u << 23), 253u << 23);
  return value == 0.f ? 1.f : __uint_as_float(exponent);
}

// Fragments of 16-bit operands by ldmatrix. An operand is TRANSPOSED if its tile has the inner dimension in its rows.
template <bool TRANSPOSED>
EMA_DEVICE void load_left(uint32_t (&a)[4], const Tile<uint16_t, 64>& tile, int row, int inner) {
  int l = lane();
  if (TRANSPOSED)
    load_matrices_transposed(a, tile.at(inner + l % 8 + l / 16 * 8, row + l / 8 % 2 * 8));
  else
    load_matrices(a, tile.at(row + l % 16, inner + l / 16 * 8));
}

// Two blocks of 8 columns: b[0], b[1] of the first and b[2], b[3] of the second.
template <bool TRANSPOSED, int COLUMNS>
EMA_DEVICE void load_right(uint32_t (&b)[4], const Tile<uint16_t, COLUMNS>& tile, int column, int inner) {
  int l = lane();
  if (TRANSPOSED)
    load_matrices_transposed(b, tile.at(inner + l % 16, column + l / 16 * 8));
  else
    load_matrices(b, tile.at(column + l % 8 + l / 16 * 8, inner + l / 8 % 2 * 8));
}

struct HalfProducts {
  using Word = uint16_t;
  static constexpr int CHUNK = 64;  // elements of 128 bytes, the step of the inner dimension
  EMA_DEVICE static float exponential(float x) { return exp2_approximate(x * 1.4426950408889634f); }
};

struct Bfloat16 : HalfProducts {
  static constexpr Dtype DTYPE = Dtype::bfloat16;
  EMA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_bf16(d, a, b0, b1);
  }
  EMA_DEVICE static uint16_t round(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
  EMA_DEVICE static float widen(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }
  EMA_DEVICE static float saturate(float x) { return x; }
};

struct Float16 : HalfProducts {
  static constexpr Dtype DTYPE = Dtype::float16;
  EMA_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_fp16(d, a, b0, b1);
  }
  EMA_DEVICE static uint16_t round(float x) { return __half_as_ushort(__float2half_rn(x)); }
  EMA_DEVICE static float widen(uint16_t x) { return __half2float(__ushort_as_half(x)); }
  EMA_DEVICE static float saturate(float x) { return fabsf(x) > 65504.f ? copysignf(65504.f, x) : x; }
};

struct SingleProducts {
  using Word = uint32_t;
  static constexpr int CHUNK = 32;
  EMA_DEVICE static float exponential(float x) { return expf(x); }
  EMA_DEVICE static uint32_t round(float x) { return __float_as_uint(x); }
  EMA_DEVICE static float widen(uint32_t x) { return __uint_as_float(x); }
  EMA_DEVICE static float saturate(float x) { return x; }
};
struct Tf32 : SingleProducts {};
struct Float32 : SingleProducts {};

// acc[i][j] += left right for rows row + 16 i and columns column + 8 j, over `INNER` elements of the inner dimension.
// Blocks from `blocks` on are left alone.
template <class Math, bool LEFT_TRANSPOSED, bool RIGHT_TRANSPOSED, int INNER, int ROWS, int BLOCKS, int A, int B>
EMA_DEVICE void multiply_tiles(float (&acc)[ROWS][BLOCKS][4], const Tile<typename Math::Word, A>& left, int row,
                               const Tile<typename Math::Word, B>& right, int column, int blocks) {
  static_assert(BLOCKS % 2 == 0, "blocks come in pairs");
  if constexpr (sizeof(typename Math::Word) == 2) {
#pragma unroll
    for (int k = 0; k < INNER; k += 16) {
      uint32_t a[ROWS][4];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) load_left<LEFT_TRANSPOSED>(a[i], left, row + 16 * i, k);
#pragma unroll
      for (int j = 0; j < BLOCKS; j += 2) {
        if (j >= blocks) break;
        uint32_t b[4];
        load_right<RIGHT_TRANSPOSED>(b, right, column + 8 * j, k);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          Math::multiply(acc[i][j], a[i], b[0], b[1]);
          Math::multiply(acc[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  } else {
    int group = lane() / 4, member = lane() % 4;
    auto left_at = [&](int m, int k) { return *(LEFT_TRANSPOSED ? left.at(k, m) : left.at(m, k)); };
    auto right_at = [&](int k, int n) { return *(RIGHT_TRANSPOSED ? right.at(k, n) : right.at(n, k)); };
    if constexpr (std::is_same_v<Math, Tf32>) {
#pragma unroll 1
      for (int k = 0; k < INNER; k += 8) {
        uint32_t a[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            a[i][e] = to_tf32(__uint_as_float(left_at(row + 16 * i + group + e % 2 * 8, k + member + e / 2 * 4)));
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
          if (j >= blocks) break;
          uint32_t b0 = to_tf32(__uint_as_float(right_at(k + member, column + 8 * j + group)));
          uint32_t b1 = to_tf32(__uint_as_float(right_at(k + member + 4, column + 8 * j + group)));
#pragma unroll
          for (int i = 0; i < ROWS; ++i) multiply_tf32(acc[i][j], a[i], b0, b1);
        }
      }
    } else {
      // A few blocks at a time start from 0 and are added every few products: one long sum loses digits.
      // Of many rows all are summed at once, for more sums do not fit into the registers.
      constexpr bool SHORT_SUMS = ROWS == 1;
      constexpr int GROUP = SHORT_SUMS && BLOCKS > 4 ? 4 : BLOCKS, PIECE = SHORT_SUMS ? 16 : INNER;
#pragma unroll
      for (int first = 0; first < BLOCKS; first += GROUP) {
        if (first >= blocks) break;
#pragma unroll 1
        for (int start = 0; start < INNER; start += PIECE) {
          float sums[ROWS][GROUP][4];
#pragma unroll
          for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < GROUP; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e) sums[i][j][e] = SHORT_SUMS ? 0.f : acc[i][first + j][e];
#pragma unroll (ROWS * BLOCKS > 4 ? 1 : 4)
          for (int k = start; k < start + PIECE; ++k) {
            float a[ROWS][2];
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
              for (int e = 0; e < 2; ++e) a[i][e] = __uint_as_float(left_at(row + 16 * i + group + 8 * e, k));
#pragma unroll
            for (int j = 0; j < GROUP; ++j) {
              if (first + j >= blocks) break;
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                float b = __uint_as_float(right_at(k, column + 8 * (first + j) + 2 * member + e));
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                  sums[i][j][e] = fmaf(a[i][0], b, sums[i][j][e]);
                  sums[i][j][e + 2] = fmaf(a[i][1], b, sums[i][j][e + 2]);
                }
              }
            }
          }
#pragma unroll
          for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < GROUP; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e)
                acc[i][first + j][e] = SHORT_SUMS ? acc[i][first + j][e] + sums[i][j][e] : sums[i][j][e];
        }
      }
    }
  }
}

// Calls `run` with the policy of the problem.
template <class Run>
auto with_math(const Problem& problem, Run run) {
  switch (problem.dtype) {
    case Dtype::bfloat16: return run(Bfloat16{});
    case Dtype::float16: return run(Float16{});
    default: return problem.tf32 ? run(Tf32{}) : run(Float32{});
  }
}

// The same for a problem in 16 bits.
template <class Run>
auto with_half_math(const Problem& problem, Run run) {
  return problem.dtype == Dtype::bfloat16 ? run(Bfloat16{}) : run(Float16{});
}

}  // namespace ema
