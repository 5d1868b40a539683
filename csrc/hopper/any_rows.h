// Tiles of features with positions fastest whose rows start anywhere, of which no boxes can be copied: warps read the
// aligned units of 16 bytes that a tile lies in to where its box would be, and shift every line in place.
//
// The unit behind the last one of a line is the first one of the next tile, which has been read but not shifted then.
#pragma once
#include "../device/tile.h"
#include "feature_tile.h"

#if EMA_HOPPER
namespace ema::hopper {

// The lines of one of the WARPS of a tile, 8 at a time; 4 lanes have the units of a line.
template <class Kind, int WARPS>
class AnyRows {
 public:
  static constexpr int TILES_BEHIND = 1;  // one has to have come before its line can be shifted

  EMA_DEVICE AnyRows(const Features& features, int head, int batch, int positions, int warp)
      : features_(features), head_(head), batch_(batch), positions_(positions), first_(warp * LINES + lane() / UNITS) {}

  // Starts the copies of a tile, or of its first units only; zeros beyond the features. An aligned unit that has numbers
  // of the features and others lies in their memory all the same.
  EMA_DEVICE void read(unsigned char* tile, int position, bool whole) const {
    if (!whole && unit() > 0) return;
    const uint16_t* from = source() + position + unit() * 8 - offset();
    const int left = min(max(positions_ - position - unit() * 8 + offset(), 0), 8);
#pragma unroll
    for (int i = 0; i < LINES; i += STEP, from += STEP * features_.channel_stride)
      copy_async_16(at(tile, i, unit()), from, first_ + i < features_.channels ? 2 * left : 0);
  }

  // When the copies of both tiles have come to all lanes.
  EMA_DEVICE void shift(unsigned char* tile, unsigned char* next) const {
    const bool last = unit() == UNITS - 1;
    const int first = 2 * offset();
#pragma unroll
    for (int i = 0; i < LINES; i += STEP) {
      auto* target = reinterpret_cast<uint4*>(at(tile, i, unit()));
      const uint4 low = *target;
      const uint4 high = *reinterpret_cast<const uint4*>(last ? at(next, i, 0) : at(tile, i, unit() + 1));
      const uint4 shifted = unit_between(low, high, first);
      __syncwarp();
      *target = shifted;
    }
  }

 private:
  static constexpr int UNITS = 2 * TILE_POSITIONS / 16, STEP = 32 / UNITS, LINES = Kind::CHANNELS / WARPS;
  static_assert(Kind::POSITIONS_FASTEST && LINES % STEP == 0 && STEP % 8 == 0);

  EMA_DEVICE static int unit() { return lane() % UNITS; }
  // Numbers between the begin of an aligned unit and the lane's lines: the same for every 8th line, and for all tiles.
  EMA_DEVICE int offset() const { return reinterpret_cast<uintptr_t>(source()) / 2 % 8; }
  // Unit `number` of the lane's line in step i of a tile.
  EMA_DEVICE unsigned char* at(unsigned char* tile, int i, int number) const {
    const int line = first_ + i;
    return tile + line * FeatureTile<Kind>::LINE + (number ^ first_ / 2 % UNITS) * 16;
  }
  EMA_DEVICE const uint16_t* source() const {
    return static_cast<const uint16_t*>(features_.data) + batch_ * features_.batch_stride +
           head_ * features_.head_stride + first_ * features_.channel_stride;
  }

  const Features& features_;
  int head_, batch_, positions_, first_;
};

}  // namespace ema::hopper
#endif
