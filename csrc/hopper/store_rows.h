// Results of a warpgroup to rows that start anywhere.
#pragma once
#include "group_tile.h"

#if EMA_HOPPER
namespace ema::hopper {

// The part of a tile of ROWS by COLUMNS, boxes of 64 columns behind each other, from (row, column) of a matrix on that lies
// within it, wherever its rows start: whole aligned units of 16 bytes, and single numbers at both ends. All threads of the
// warpgroup take part.
template <int ROWS, int COLUMNS>
EMA_DEVICE void store_rows(unsigned char* tile, const Matrix<uint16_t>& out, int row, int column) {
  constexpr int UNIT = 8, UNITS = COLUMNS / UNIT + 1;  // of a row: it may begin within one
  const int end = min(COLUMNS, out.columns - column), rows = min(ROWS, out.rows - row);
  for (int i = group_thread(); i < rows * UNITS; i += GROUP) {
    const int r = i / UNITS;
    auto at = [&](int c) { return Tile<uint16_t, 64>{tile + c / 64 * (ROWS * CHUNK_BYTES)}.at(r, c % 64); };
    auto unit = [&](int number) { return *reinterpret_cast<const uint4*>(at(min(number, UNITS - 2) * UNIT)); };
    uint16_t* target = out.data + (row + r) * out.stride + column;
    const int begin = i % UNITS * UNIT - static_cast<int>(reinterpret_cast<uintptr_t>(target) / 2 % UNIT);
    if (begin >= 0 && begin + UNIT <= end)
      *reinterpret_cast<uint4*>(target + begin) = unit_between(unit(begin / UNIT), unit(begin / UNIT + 1), begin % UNIT * 2);
    else
      for (int c = max(begin, 0); c < min(begin + UNIT, end); ++c) target[c] = *at(c);
  }
}

}  // namespace ema::hopper
#endif
