// Partial sums in the registers of a warpgroup, 64 bases by COLUMNS channels, to a slot: of float16 for bfloat16, of
// float32 for float16, whose results have digits that float16 slots would take.
#pragma once
#include "../device/half_slot.h"
#include "group_tile.h"
#include "hopper.h"

#if EMA_HOPPER
namespace ema::hopper {

// 64 channels of one of a thread's two bases, in a product's registers 4 j + 2 half and the next ones from `sums` on.
EMA_DEVICE void store_half_line(const float* sums, int half, bool leads, uint4* pieces, float* power_target) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float size = fabsf(sums[i / 2 * 4 + 2 * half + i % 2]);
    largest = fmaxf(largest, size < INFINITY ? size : 0.f);  // what is not finite stays so, and leaves the others alone
  }
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
  const float power = half_power(largest), factor = inverse_power(power);
  auto pair = [&](int j) { return half_pair(factor * sums[4 * j + 2 * half], factor * sums[4 * j + 2 * half + 1]); };
  pieces[0] = make_uint4(pair(0), pair(2), pair(4), pair(6));
  pieces[4] = make_uint4(pair(1), pair(3), pair(5), pair(7));
  if (leads) *power_target = power;
}

// To the channels of slot number `slot` from `channel` on, a multiple of 64; slots [.., 64, width].
template <class Math, int COLUMNS>
EMA_DEVICE void store_sums(const float (&sums)[COLUMNS / 2], float* slots, int64_t slot, int channel, int width) {
  if constexpr (half_slots(Math::DTYPE)) {
    slots += slot * half_slot_words(64, width);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int thread = opaque(threadIdx.x) % GROUP;  // anew each time: addresses kept would be registers too many
      const int base = thread / 32 * 16 + thread % 32 / 4, member = thread % 4;
      const HalfLine line(base + 8 * half, 64, width);
      auto* pieces = reinterpret_cast<uint4*>(slots + line.sums) + channel / 8 + member;
      float* powers = slots + line.powers + channel / POWER_CHANNELS;
#pragma unroll
      for (int c = 0; c < COLUMNS / POWER_CHANNELS; ++c)
        if (channel + POWER_CHANNELS * c < width)
          store_half_line(sums + 32 * c, half, member == 0, pieces + 8 * c, powers + c);
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
