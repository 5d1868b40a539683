// The shared memory of e_step_gradient on Hopper, for the plan and for the kernel: for each of two warpgroups a tile of
// gradients and one of responsibilities, numbers, barriers, then rows of bases that stay, and stages of features.
#pragma once
#include "hopper.h"

namespace ema::hopper {

struct GradientLayout {
  static constexpr int POSITIONS = 32, GROUPS = 2, MAX_STAGES = 8, TILE_BYTES = POSITIONS * 128;
  // numbers of a group: three sums over the bases, weights of two tiles, masses
  static constexpr int STATISTICS = 4 * POSITIONS, WEIGHTS = 2 * POSITIONS, MASSES = 64;
  static constexpr int NUMBERS = 3 * STATISTICS + WEIGHTS + MASSES;
  static constexpr int BARRIERS = 1 + 2 * GROUPS + MAX_STAGES;
  static constexpr int NUMBERS_BEGIN = 2 * GROUPS * TILE_BYTES, BARRIERS_BEGIN = NUMBERS_BEGIN + GROUPS * NUMBERS * 4;
  static constexpr int ROWS_BEGIN = (BARRIERS_BEGIN + BARRIERS * 8 + 1023) / 1024 * 1024;

  EMA_HOST_DEVICE static constexpr int rows_bytes(int channels) { return 128 * channels; }
  EMA_HOST_DEVICE static constexpr int stage_bytes(int channels) { return 2 * POSITIONS * channels; }
  EMA_HOST_DEVICE static constexpr int bytes(int channels, int matrices, int stages) {
    return ROWS_BEGIN + matrices * rows_bytes(channels) + stages * stage_bytes(channels);
  }
};

}  // namespace ema::hopper
