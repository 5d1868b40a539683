// The whole loop in one launch. Limits: 16 bits, K <= 64, C <= LOOP_CHANNELS, features that can be copied as boxes.
#pragma once
#include "../kernels/kernels.h"

namespace ema::hopper {

// The most channels, and those that it works on whatever their number.
constexpr int LOOP_CHANNELS = 512;
inline int loop_width(int channels) { return channels > 256 ? 512 : 256; }

// The whole loop and the reconstruction, with the results of em_forward. A block is one of a cluster, W = loop_width(C).
struct EmLoop {
  Features x, y;
  Weight weight;
  const float* weight_maxima = nullptr;
  const void* logit_rows = nullptr;  // [G, Kp, Cp]: the initial bases, times the temperature
  void* responsibilities = nullptr;  // of the last iteration, [blocks, ceil(plan.positions / 64), 64, 64]
  void* rows = nullptr;              // [clusters, Kp, W]
  float* sums = nullptr;             // [2, clusters, Kp, W], unless an image has a single cluster
  float* masses = nullptr;           // [2, clusters, Kp]
  unsigned* counts = nullptr;        // [G, plan.cluster]
  float* path = nullptr;             // [T, G, C, K], the first of which is there already
  float* bases = nullptr;            // [G, C, K]
  float* mass = nullptr;             // [T, G, K]
  float* length = nullptr;           // [T, G, K]
};
cudaError_t em_loop(const Problem&, const LoopPlan& plan, const EmLoop&, cudaStream_t stream);

}  // namespace ema::hopper
