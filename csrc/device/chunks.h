// Features and bases in chunks of 128 bytes of the channels, and the share of a block in the positions of an image.
#pragma once
#include "../plan.h"
#include "math.h"

namespace ema {

// A chunk of a tile of features: [TILE, CHUNK], or [CHUNK, TILE] when the positions are fastest.
template <class Math, bool POSITIONS_FASTEST>
struct FeatureChunk {
  using Word = typename Math::Word;
  using Shape = Tile<Word, POSITIONS_FASTEST ? TILE : Math::CHUNK>;
  static constexpr int BYTES = TILE * CHUNK_BYTES;

  EMA_DEVICE static void load(const Shape& tile, const Matrix<Word>& x, int position, int channel) {
    if (POSITIONS_FASTEST)
      load_tile(tile, Math::CHUNK, x, channel, position);
    else
      load_tile(tile, TILE, x, position, channel);
  }
};

// Rows [Kp, Cp] of bases of one image, from memory [.., Kp, Cp].
template <class Word>
struct Rows {
  const Word* data;
  int count, width;

  EMA_DEVICE Rows(const void* rows, int64_t image, int count, int width)
      : data(static_cast<const Word*>(rows) + image * count * width), count(count), width(width) {}

  // The columns of a tile from `column` on, of all bases.
  template <int COLUMNS>
  EMA_DEVICE void load(const Tile<Word, COLUMNS>& tile, int column) const {
    load_aligned_tile(tile, count, data + column, width);
  }
};

// Which tiles a split works on: neighbours, all splits as many but for one.
struct TileRange {
  int begin, end;

  EMA_DEVICE TileRange(int positions, int splits, int split, int tile = TILE) {
    int64_t tiles = (positions - 1) / tile + 1;
    begin = static_cast<int>(tiles * split / splits);
    end = static_cast<int>(tiles * (split + 1) / splits);
  }
  EMA_DEVICE int count() const { return end - begin; }
};

EMA_DEVICE float position_weight(const Weight& weight, int image, int heads, int position, int positions) {
  if (weight.data == nullptr || position >= positions) return position < positions ? 1.f : 0.f;
  return weight.data[image / heads * weight.batch_stride + image % heads * weight.head_stride +
                     position * weight.position_stride];
}

// A power of two near the largest weight of an image, 1 without maxima. All lanes of a warp take part.
EMA_DEVICE float weight_power(const float* maxima, int image) {
  if (maxima == nullptr) return 1.f;
  float largest = maxima[image * WEIGHT_PARTS + lane()];
  for (int other = 16; other > 0; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
  return power_of_two(largest);
}

}  // namespace ema
