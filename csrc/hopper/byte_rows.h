// Tiles of features of 8 bits (e4m3) in both memory orders, whose rows start anywhere: warps read the aligned units of
// 16 bytes that a line lies in to the memory of that line in its box, and widen it in place to bfloat16.
//
// A line has half as many bytes as its memory, so that there is room for the one unit more that an unaligned one lies in.
#pragma once
#include "feature_tile.h"
#include "group_tile.h"

#if EMA_HOPPER
namespace ema::hopper {

// 16 of the 32 bytes of two units behind each other, from byte `first` on, below 16.
EMA_DEVICE uint4 bytes_between(const uint4& low, const uint4& high, int first) {
  uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = first & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = first & 4 ? words[i + 1] : words[i];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words[i] = static_cast<uint32_t>((static_cast<uint64_t>(words[i + 1]) << 32 | words[i]) >> first % 4 * 8);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Two numbers of float16 as bfloat16, which has all digits of those that had 8 bits.
EMA_DEVICE uint32_t exact_pair(uint32_t halves) {
  const float first = Float16::widen(static_cast<uint16_t>(halves));
  return round_pair<Bfloat16>(first, Float16::widen(static_cast<uint16_t>(halves >> 16)));
}
// 8 numbers of 8 bits.
EMA_DEVICE uint4 widen_eight(uint32_t low, uint32_t high) {
  const uint2 first = widen_e4m3(low), second = widen_e4m3(high);
  return make_uint4(exact_pair(first.x), exact_pair(first.y), exact_pair(second.x), exact_pair(second.y));
}

// The lines of one of the WARPS of a tile, STEP at a time; a lane for each unit that a line fills.
template <class Kind, int WARPS>
class ByteRows {
 public:
  static constexpr int TILES_BEHIND = 0;

  EMA_DEVICE ByteRows(const Features& features, int head, int batch, int positions, int warp)
      : features_(features), head_(head), batch_(batch), positions_(positions), first_(warp * LINES + lane() / UNITS) {}

  // Starts the copies of a tile; zeros beyond the features. An aligned unit that has numbers of the features and others
  // lies in their memory all the same.
  EMA_DEVICE void read(unsigned char* tile, int position, bool) const {
    const int channels = features_.channels - channel(), positions = positions_ - position;
    if (channels >= (POSITIONS_FASTEST ? LINES : 64) && positions >= TILE_POSITIONS)
      read_inside(tile, position);
    else
      read_edge(tile, position);
  }

  // When the copies of the tile have come to all lanes: lines from any address to 16 bits where their boxes have them.
  EMA_DEVICE void shift(unsigned char* tile, unsigned char*) const {
    const unsigned char* from = source(0);  // in all tiles a line begins as far behind an aligned unit
    const unsigned place = 2 * unit() ^ row() % (2 * UNITS);
#pragma unroll
    for (int i = 0; i < LINES; i += STEP, from += STEP * stride()) {
      uint4* units = units_of(tile, i);
      uint4 bytes = units[spot(unit())];
      if (offset(from) > 0) bytes = bytes_between(bytes, units[spot(unit() + 1)], offset(from));
      __syncwarp();
      units[place] = widen_eight(bytes.x, bytes.y);
      units[place ^ 1] = widen_eight(bytes.z, bytes.w);
    }
  }

 private:
  static constexpr bool POSITIONS_FASTEST = Kind::POSITIONS_FASTEST;
  static constexpr int LINE = FeatureTile<Kind>::LINE, UNITS = LINE / 2 / 16, STEP = 32 / UNITS;
  static constexpr int LINES = FeatureTile<Kind>::BOXES * FeatureTile<Kind>::BOX_BYTES / LINE / WARPS;
  static_assert(LINES % STEP == 0 && (POSITIONS_FASTEST || LINES <= TILE_POSITIONS), "lines of one box");

  EMA_DEVICE static int unit() { return lane() % UNITS; }
  EMA_DEVICE static int offset(const unsigned char* from) { return reinterpret_cast<uintptr_t>(from) % 16; }

  // Which 128 bytes of shared memory the lane's line lies in, for every step but for multiples of 8.
  EMA_DEVICE unsigned row() const { return first_ * LINE / 128; }
  static_assert(STEP * LINE / 128 % 8 == 0);
  EMA_DEVICE uint4* units_of(unsigned char* tile, int i) const {
    return reinterpret_cast<uint4*>(tile + first_ * LINE + i * LINE);
  }
  // Where a unit of a line lies before it is widened: in neighbouring rows in other banks.
  EMA_DEVICE unsigned spot(int number) const { return number ^ row() % 2 * UNITS; }

  // Of the lane's first line: the first channel, and the first position in a tile.
  EMA_DEVICE int channel() const { return POSITIONS_FASTEST ? first_ : first_ / TILE_POSITIONS * 64; }
  EMA_DEVICE int position() const { return POSITIONS_FASTEST ? 0 : first_ % TILE_POSITIONS; }
  EMA_DEVICE int64_t stride() const { return POSITIONS_FASTEST ? features_.channel_stride : features_.position_stride; }
  EMA_DEVICE const unsigned char* source(int tile_position) const {
    const int position = tile_position + this->position();
    return static_cast<const unsigned char*>(features_.data) + batch_ * features_.batch_stride +
           head_ * features_.head_stride + (POSITIONS_FASTEST ? channel() : position) * stride() +
           (POSITIONS_FASTEST ? position : channel());
  }

  // All lines are features, and whole; an unaligned one ends in one unit more.
  EMA_DEVICE void read_inside(unsigned char* tile, int tile_position) const {
    const unsigned char* from = source(tile_position);
#pragma unroll
    for (int i = 0; i < LINES; i += STEP, from += STEP * stride()) {
      const unsigned char* units = from - offset(from) + 16 * unit();
      copy_async_16(units_of(tile, i) + spot(unit()), units, 16);
      if (unit() == UNITS - 1 && offset(from) > 0) copy_async_16(units_of(tile, i) + spot(UNITS), units + 16, 16);
    }
  }
  EMA_DEVICE void read_edge(unsigned char* tile, int tile_position) const {
    const unsigned char* from = source(tile_position);
    const int channels = features_.channels - channel(), positions = positions_ - tile_position - position();
#pragma unroll 1
    for (int i = 0; i < LINES; i += STEP, from += STEP * stride()) {
      const bool any = channels > (POSITIONS_FASTEST ? i : 0) && positions > (POSITIONS_FASTEST ? 0 : i);
      const int end = any ? offset(from) + (POSITIONS_FASTEST ? positions : channels) : 0;
      auto copy = [&](int number) {
        copy_async_16(units_of(tile, i) + spot(number), from - offset(from) + 16 * number,
                      min(max(end - 16 * number, 0), 16));
      };
      copy(unit());
      if (unit() == UNITS - 1 && offset(from) > 0) copy(UNITS);
    }
  }

  const Features& features_;
  int head_, batch_, positions_;
  unsigned first_;  // line of the lane
};

}  // namespace ema::hopper
#endif
