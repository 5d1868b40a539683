// x for the end of the unit where its rows, with positions fastest, start anywhere: a warp reads the aligned units of 16
// bytes that a tile of 64 positions lies in to where its box would be, and shifts every line in place.
#pragma once
#include "../device/tile.h"
#include "hopper.h"
#include "ptx.h"

#if EMA_HOPPER
namespace ema::hopper {

template <int LINES>
class UnitTailRows {
 public:
  // Lines are the channels of `x` from `channel` on; `ends` has memory for the unit behind the last one of every line.
  EMA_DEVICE UnitTailRows(const Matrix<uint16_t>& x, int channel, unsigned char* tile, unsigned char* ends)
      : x_(x), channel_(channel), tile_{tile}, ends_(reinterpret_cast<uint4*>(ends)) {}

  // Until the tile from `position`, a multiple of 64, on is there; zeros beyond the features.
  EMA_DEVICE void bring(int position) const {
    for (int i = lane() / UNITS; i < LINES; i += 32 / UNITS) read(at(i, unit()), i, unit(), position);
    for (int i = lane(); i < LINES; i += 32) read(ends_ + i, i, UNITS, position);
    copy_async_commit();
    copy_async_wait(0);
    __syncwarp();
#pragma unroll 1
    for (int i = lane() / UNITS; i < LINES; i += 32 / UNITS) {
      const uint4 low = *at(i, unit()), high = unit() == UNITS - 1 ? ends_[i] : *at(i, unit() + 1);
      const uint4 shifted = unit_between(low, high, 2 * offset(i));
      __syncwarp();
      *at(i, unit()) = shifted;
    }
  }

 private:
  static constexpr int UNIT = 8, UNITS = 64 / UNIT;  // numbers of a unit, units of a line

  EMA_DEVICE static int unit() { return lane() % UNITS; }
  EMA_DEVICE uint4* at(int line, int number) const { return reinterpret_cast<uint4*>(tile_.at(line, number * UNIT)); }
  EMA_DEVICE const uint16_t* source(int line) const { return x_.data + (channel_ + line) * x_.stride; }
  // Numbers between the begin of an aligned unit and a line, the same for all tiles.
  EMA_DEVICE int offset(int line) const { return static_cast<int>(reinterpret_cast<uintptr_t>(source(line)) / 2 % UNIT); }
  EMA_DEVICE void read(void* to, int line, int number, int position) const {
    const int first = position + number * UNIT - offset(line);
    const int left = channel_ + line < x_.rows ? min(max(x_.columns - first, 0), UNIT) : 0;
    copy_async_16(to, source(line) + first, 2 * left);
  }

  const Matrix<uint16_t>& x_;
  int channel_;
  Tile<uint16_t, 64> tile_;
  uint4* ends_;
};

}  // namespace ema::hopper
#endif
