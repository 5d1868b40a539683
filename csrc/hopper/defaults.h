// Which parts of csrc/hopper are on where EMA_OPS_HOPPER is not set: from how many positions of all images together on.
#pragma once
#include <cstdint>

namespace ema::hopper {

constexpr int64_t NEVER = INT64_MAX;
constexpr int64_t from(int64_t positions) { return positions; }

// NEVER until a GPU has shown a part right and faster: decision.md of benchmarks/gpu_check.sh has these lines.
constexpr int64_t FORWARD_TILES = NEVER;   // E-step, M-step, reconstruction
constexpr int64_t BACKWARD_TILES = NEVER;  // gradients of E-step and reconstruction, gradient of the features
constexpr int64_t UNIT_TILES = NEVER;      // the end of the unit in evaluation
constexpr int64_t OVERLAP = NEVER;
constexpr int64_t LOOP = NEVER;

constexpr bool ANY_BY_DEFAULT = FORWARD_TILES < NEVER || BACKWARD_TILES < NEVER || UNIT_TILES < NEVER ||
                                OVERLAP < NEVER || LOOP < NEVER;

}  // namespace ema::hopper
