// Partial sums in the registers of a warpgroup, 64 bases by COLUMNS channels, to a slot: bfloat16 problems have slots of
// float16, float16 ones slots of float32, for their results have digits that float16 slots would take.
#pragma once
#include "../device/half_slot.h"
#include "group_tile.h"
#include "hopper.h"

#if EMA_HOPPER
namespace ema::hopper {

// The channels from `sums` + 2 OFFSET on, 64 of them, of the base half * 8 further than the first one.
template <int COLUMNS>
EMA_DEVICE void store_half_line(const float (&sums)[COLUMNS / 2], int begin, int half, float* slots, const HalfLine& line,
                                int channel) {
  float largest = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float size = fabsf(sums[begin + 4 * j + 2 * half + e]);
      largest = fmaxf(largest, size < INFINITY ? size : 0.f);  // what is not finite stays so, and leaves the others alone
    }
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
  const float power = half_power(largest), factor = inverse_power(power);
  auto pair = [&](int j) {
    return half_pair(factor * sums[begin + 4 * j + 2 * half], factor * sums[begin + 4 * j + 2 * half + 1]);
  };
  auto* pieces = reinterpret_cast<uint4*>(slots + line.sums) + channel / 8 + lane() % 4;
  pieces[0] = make_uint4(pair(0), pair(2), pair(4), pair(6));
  pieces[4] = make_uint4(pair(1), pair(3), pair(5), pair(7));
  if (lane() % 4 == 0) slots[line.powers + channel / POWER_CHANNELS] = power;
}

// To the channels of slot number `slot` from `channel` on, a multiple of 64; slots [.., 64, width].
template <class Math, int COLUMNS>
EMA_DEVICE void store_sums(const float (&sums)[COLUMNS / 2], float* slots, int64_t slot, int channel, int width) {
  if constexpr (half_slots(Math::DTYPE)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const HalfLine line(slot, first_base() + 8 * half, 64, width);
#pragma unroll
      for (int c = 0; c < COLUMNS; c += POWER_CHANNELS) {
        if (channel + c >= width) break;
        store_half_line<COLUMNS>(sums, c / 2, half, slots, line, channel + c);
      }
    }
  } else {
    float* line = slots + (slot * 64 + first_base()) * width + channel + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 4) {
      if (channel + 2 * i >= width) break;
      *reinterpret_cast<float2*>(line + 2 * i) = make_float2(sums[i], sums[i + 1]);
      *reinterpret_cast<float2*>(line + 8 * width + 2 * i) = make_float2(sums[i + 2], sums[i + 3]);
    }
  }
}

}  // namespace ema::hopper
#endif
