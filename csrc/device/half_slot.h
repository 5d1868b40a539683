// A slot of partial sums [bases, width] as float16, half as many bytes as float32. Every POWER_CHANNELS of a base are
// divided by a power of two of their own, so that their digits stay and no sum leaves the range; the powers come last.
//
// Channels that share a power are 8 pieces of 16 bytes, each of 4 pairs that one thread has from a product of its
// warpgroup: pair i of piece p is 16 i + p / 4 * 8 + p % 4 * 2 and the next one.
#pragma once
#include "math.h"

namespace ema {

// Where the line of a base begins in its slot, in words of 4 bytes: its sums and its powers.
struct HalfLine {
  int sums, powers;

  EMA_DEVICE HalfLine(int base, int bases, int width)
      : sums(base * (width / 2)), powers(bases * (width / 2) + base * (width / POWER_CHANNELS)) {}
};

EMA_DEVICE int pair_channel(int piece, int pair) {
  return piece / 8 * POWER_CHANNELS + 16 * pair + piece / 4 % 2 * 8 + piece % 4 * 2;
}

// The power for numbers up to `largest`: divided by it they stay below 2^15 and from 2^-28 of it on keep all digits.
EMA_DEVICE float half_power(float largest) {
  const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 15u), 254u);  // largest < 2^(exponent - 126)
  return __uint_as_float((exponent - 14) << 23);
}

// 1 / power, exactly.
EMA_DEVICE float inverse_power(float power) { return __uint_as_float((254u << 23) - __float_as_uint(power)); }

EMA_DEVICE uint32_t half_pair(float first, float second) {
  return Float16::round(first) | static_cast<uint32_t>(Float16::round(second)) << 16;
}

}  // namespace ema
