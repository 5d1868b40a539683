// Tiles in shared memory, and how matrices get there.
#pragma once
#include <cstdint>

#include "../problem.h"
#include "platform.h"
#include "ptx.h"

namespace ema {

// Rows of COLUMNS elements. The 16-byte units of a row are permuted by its number, so that neither a column of units
// nor a row of them meets one bank twice. COLUMNS elements are a multiple of 128 bytes.
template <class Word, int COLUMNS>
struct Tile {
  unsigned char* memory;

  // The elements of a unit lie behind each other; `column` picks one.
  EMA_DEVICE Word* at(int row, int column) const {
    int offset = column * static_cast<int>(sizeof(Word));
    return reinterpret_cast<Word*>(memory + row * COLUMNS * static_cast<int>(sizeof(Word)) +
                                   (offset ^ ((row & 7) << 4)));
  }
};

// The features of one image as a matrix whose columns lie behind each other: positions by channels, or the other way
// round when the positions are fastest.
template <class Word>
struct Matrix {
  Word* data;
  int64_t stride;
  int rows, columns;
  bool aligned;  // every row starts at a multiple of 16 bytes

  EMA_DEVICE Matrix(Word* data, int64_t stride, int rows, int columns)
      : data(data), stride(stride), rows(rows), columns(columns),
        aligned(((reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride) * sizeof(Word)) & 15) == 0) {}
};

template <class Word, bool POSITIONS_FASTEST>
EMA_DEVICE Matrix<Word> image_of(const Features& features, int image, int heads, int positions) {
  Word* data = static_cast<Word*>(features.data) + image / heads * features.batch_stride +
               image % heads * features.head_stride;
  return POSITIONS_FASTEST ? Matrix<Word>(data, features.channel_stride, features.channels, positions)
                           : Matrix<Word>(data, features.position_stride, positions, features.channels);
}

// 16 of the 32 bytes of two units behind each other, from byte `first` on: an even number below 16.
EMA_DEVICE uint4 unit_between(const uint4& low, const uint4& high, int first) {
  uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  // constant indices only: an index known at run time would put the words into local memory
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = first & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = first & 4 ? words[i + 1] : words[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = first & 2 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// 16 bytes from any address of an element, the first `valid` elements of them real and the rest zero. Reads whole
// aligned units where they lie between `begin` and `end`.
template <class Word>
EMA_DEVICE uint4 load_unaligned(const Word* source, int valid, const void* begin, const void* end) {
  constexpr int UNIT = 16 / sizeof(Word);
  uintptr_t address = reinterpret_cast<uintptr_t>(source), shift = address & 15, first = address - shift;
  if (valid == UNIT && first >= reinterpret_cast<uintptr_t>(begin) && first + 32 <= reinterpret_cast<uintptr_t>(end))
    return unit_between(load_16(reinterpret_cast<const void*>(first)), load_16(reinterpret_cast<const void*>(first + 16)),
                        static_cast<int>(shift));
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < UNIT; ++i)
    if (i < valid) {
      uint32_t value = source[i];
      words[i * sizeof(Word) / 4] |= sizeof(Word) == 4 ? value : value << (i % 2 * 16);
    }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Starts the copy of `rows` rows and all columns of a tile from (row, column) of a matrix on; zero beyond its end.
// Every thread of the block takes part. Whoever reads the tile waits for the copy and for the block first.
template <class Word, int COLUMNS>
EMA_DEVICE void load_tile(Tile<Word, COLUMNS> tile, int rows, const Matrix<Word>& matrix, int row, int column) {
  constexpr int UNIT = 16 / sizeof(Word), UNITS = COLUMNS / UNIT;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * UNITS; i += blockDim.x) {
    int r = i / UNITS, c = i % UNITS * UNIT;
    int left = matrix.columns - column - c;
    int valid = row + r < matrix.rows && left > 0 ? (left < UNIT ? left : UNIT) : 0;
    const Word* source = matrix.data + (valid > 0 ? (row + r) * matrix.stride + column + c : 0);
    Word* target = tile.at(r, c);
    if (matrix.aligned)
      copy_async_16(target, source, valid * static_cast<int>(sizeof(Word)));
    else
      *reinterpret_cast<uint4*>(target) = load_unaligned(
          source, valid, matrix.data, matrix.data + (matrix.rows - 1) * matrix.stride + matrix.columns);
  }
}

// The same for a matrix of which all rows are aligned and lie within its bounds.
template <class Word, int COLUMNS>
EMA_DEVICE void load_aligned_tile(Tile<Word, COLUMNS> tile, int rows, const Word* source, int stride) {
  constexpr int UNIT = 16 / sizeof(Word), UNITS = COLUMNS / UNIT;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * UNITS; i += blockDim.x) {
    int r = i / UNITS, c = i % UNITS * UNIT;
    copy_async_16(tile.at(r, c), source + r * stride + c, 16);
  }
}

// The part of a tile from (row, column) of a matrix on that lies within it. Every thread of the block takes part.
template <class Word, int COLUMNS>
EMA_DEVICE void write_tile(const Tile<Word, COLUMNS>& tile, int rows, const Matrix<Word>& out, int row, int column) {
  constexpr int UNIT = 16 / sizeof(Word), UNITS = COLUMNS / UNIT;
  if (out.aligned) {
    for (int i = threadIdx.x; i < rows * UNITS; i += blockDim.x) {
      int r = i / UNITS, c = i % UNITS * UNIT, left = out.columns - column - c;
      if (row + r >= out.rows) continue;
      const Word* source = tile.at(r, c);
      Word* target = out.data + (row + r) * out.stride + column + c;
      if (left >= UNIT)
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
      else
        for (int e = 0; e < left; ++e) target[e] = source[e];
    }
  } else {
    for (int i = threadIdx.x; i < rows * COLUMNS; i += blockDim.x) {
      int r = i / COLUMNS, c = i % COLUMNS;
      if (row + r < out.rows && column + c < out.columns)
        out.data[(row + r) * out.stride + column + c] = *tile.at(r, c);
    }
  }
}

}  // namespace ema
