// The shared memory of gradients on Hopper, for the plans and for the kernels.
#pragma once
#include "hopper.h"

namespace ema::hopper {

// Of e_step_gradient: for each of two warpgroups a tile of gradients and one of responsibilities, numbers, barriers; then
// rows of bases that stay, and stages of features.
struct GradientLayout {
  static constexpr int POSITIONS = TILE_POSITIONS, GROUPS = 2, MAX_STAGES = 8, TILE_BYTES = POSITIONS * 128;
  static constexpr int PRODUCTS_BYTES = POSITIONS * 64 * 4;  // that come from the reconstruction, in memory
  // numbers of a group: three sums over the bases, weights of two tiles, masses
  static constexpr int STATISTICS = 4 * POSITIONS, WEIGHTS = 2 * POSITIONS, MASSES = 64;
  static constexpr int NUMBERS = 3 * STATISTICS + WEIGHTS + MASSES;
  static constexpr int BARRIERS = 1 + 2 * GROUPS + MAX_STAGES;
  static constexpr int NUMBERS_BEGIN = 2 * GROUPS * TILE_BYTES, BASES_BEGIN = NUMBERS_BEGIN + GROUPS * NUMBERS * 4;
  static constexpr int BARRIERS_BEGIN = BASES_BEGIN + 3 * 64 * 4;  // three numbers of every base
  static constexpr int ROWS_BEGIN = (BARRIERS_BEGIN + BARRIERS * 8 + 1023) / 1024 * 1024;

  EMA_HOST_DEVICE static constexpr int rows_bytes(int channels) { return 128 * channels; }
  EMA_HOST_DEVICE static constexpr int stage_bytes(int channels) { return 2 * POSITIONS * channels; }
  EMA_HOST_DEVICE static constexpr int bytes(int channels, int matrices, int stages) {
    return ROWS_BEGIN + matrices * rows_bytes(channels) + stages * stage_bytes(channels);
  }
};

// Of reconstruct_gradient: numbers and barriers, value rows, stages of features, the gradient of y and responsibilities.
struct ReconstructGradientLayout {
  static constexpr int MAX_STAGES = 8, STATISTICS = 4 * TILE_POSITIONS, BARRIERS = 1 + 5 * MAX_STAGES, HEAD_BYTES = 2048;
  static_assert((2 * STATISTICS + 64) * 4 + BARRIERS * 8 <= HEAD_BYTES);

  EMA_HOST_DEVICE static constexpr int stage_bytes(int channels) {
    return 2 * GradientLayout::stage_bytes(channels) + GradientLayout::TILE_BYTES;
  }
  EMA_HOST_DEVICE static constexpr int bytes(int channels, int stages) {
    return HEAD_BYTES + GradientLayout::rows_bytes(channels) + stages * stage_bytes(channels);
  }
};

// Of rows_gradient: barriers, value rows, stages of the gradient of y and of responsibilities.
struct RowsGradientLayout {
  static constexpr int MAX_STAGES = 8, BARRIER_BYTES = 1024;

  EMA_HOST_DEVICE static constexpr int stage_bytes(int channels) {
    return GradientLayout::stage_bytes(channels) + GradientLayout::TILE_BYTES;
  }
  EMA_HOST_DEVICE static constexpr int bytes(int channels, int stages) {
    return BARRIER_BYTES + GradientLayout::rows_bytes(channels) + stages * stage_bytes(channels);
  }
};

}  // namespace ema::hopper
