// Partial sums of an image added up, the start of every kernel between two passes over the features.
#pragma once
#include "../device/half_slot.h"
#include "base_lines.h"

namespace ema {

// 16 bytes of a base's line in a slot: pairs of neighbouring channels.
struct FloatPiece {
  static constexpr int PAIRS = 2;
  uint4 words = {};

  EMA_DEVICE static int channel(int piece, int pair) { return 4 * piece + 2 * pair; }
  EMA_DEVICE void load(const float* slots, int64_t slot, const Place& place, int piece) {
    const float* line = slots + (slot * place.padded + place.base) * place.width;
    words = reinterpret_cast<const uint4*>(line)[piece];
  }
  EMA_DEVICE void add_to(float2 (&total)[PAIRS]) const {
    total[0].x += __uint_as_float(words.x), total[0].y += __uint_as_float(words.y);
    total[1].x += __uint_as_float(words.z), total[1].y += __uint_as_float(words.w);
  }
};

struct HalfPiece {
  static constexpr int PAIRS = 4;
  uint4 words = {};
  float power = 0;

  EMA_DEVICE static int channel(int piece, int pair) { return pair_channel(piece, pair); }
  EMA_DEVICE void load(const float* slots, int64_t slot, const Place& place, int piece) {
    const HalfLine line(place.base, place.padded, place.width);
    slots += slot * half_slot_words(place.padded, place.width);
    words = reinterpret_cast<const uint4*>(slots + line.sums)[piece];
    power = slots[line.powers + piece / 8];
  }
  EMA_DEVICE void add_to(float2 (&total)[PAIRS]) const {
    const uint32_t pairs[PAIRS] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      total[i].x += power * Float16::widen(static_cast<uint16_t>(pairs[i]));
      total[i].y += power * Float16::widen(static_cast<uint16_t>(pairs[i] >> 16));
    }
  }
};

// Several slots are on their way at once, and threads to spare take a share of the slots.
template <class Piece>
EMA_DEVICE void add_pieces(const Place& place, const Partials& partials, int channels, float* memory) {
  constexpr int AT_ONCE = 8, MOST_SHARES = 8;
  const float factor = partials.sum_factor * weight_power(partials.weight_maxima, place.image);
  const int64_t first_slot = static_cast<int64_t>(place.image) * partials.sum_splits;
  const int pieces = place.width / (2 * Piece::PAIRS), shares = min(max(place.step / pieces, 1), MOST_SHARES);
  const int share = place.first / pieces;
  for (int start = 0; start < pieces; start += place.step) {
    const int piece = start + place.first - share * pieces;
    const bool works = share < shares && piece < pieces;
    float2 total[Piece::PAIRS] = {};
    for (int slot = share; works && slot < partials.sum_splits; slot += AT_ONCE * shares) {
      Piece read[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i)
        if (slot + i * shares < partials.sum_splits)
          read[i].load(partials.sums, first_slot + slot + i * shares, place, piece);
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) read[i].add_to(total);
    }
    for (int turn = 0; turn < shares; ++turn) {
      const float last_factor = turn + 1 == shares ? factor : 1.f;
#pragma unroll
      for (int i = 0; i < Piece::PAIRS; ++i) {
        if (!works || turn != share) break;
        const int channel = Piece::channel(piece, i);
        auto* pair = reinterpret_cast<float2*>(place.line(memory) + channel);
        const float2 before = turn > 0 ? *pair : make_float2(0.f, 0.f);
        *pair = make_float2(channel < channels ? last_factor * (before.x + total[i].x) : 0.f,
                            channel + 1 < channels ? last_factor * (before.y + total[i].y) : 0.f);
      }
      __syncthreads();
    }
  }
}

// My base's line becomes the sum of the slots, in a fixed order; columns beyond C become 0. All threads of the block
// take part and meet at the end.
EMA_DEVICE void add_slots(const Place& place, const Partials& partials, int channels, float* memory) {
  if (partials.half_slots)
    add_pieces<HalfPiece>(place, partials, channels, memory);
  else
    add_pieces<FloatPiece>(place, partials, channels, memory);
}

EMA_DEVICE float add_masses(const Place& place, const Partials& partials) {
  const float* source = partials.masses + static_cast<int64_t>(place.image) * partials.mass_splits * place.padded;
  float total = 0;
  for (int slot = place.first; slot < partials.mass_splits; slot += place.step)
    total += source[static_cast<int64_t>(slot) * place.padded + place.base];
  return partials.mass_factor * weight_power(partials.weight_maxima, place.image) * line_sum(place, total);
}

}  // namespace ema
