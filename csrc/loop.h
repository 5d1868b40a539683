// The loop and its gradient: which kernels run in which order, and what lies in the workspace between them.
#pragma once
#include "call.h"

namespace ema {

struct Forward {
  Features x, y;
  Weight weight;
  Bases initial;
  float* path = nullptr;    // [T, G, C, K]: the bases every iteration starts from
  float* bases = nullptr;   // [G, C, K]: the last ones
  float* mass = nullptr;    // [T, G, K]
  float* length = nullptr;  // [T, G, K]
};
void em_forward(const Call&, const Forward&, Arena workspace);
int64_t em_forward_bytes(const Problem&, const Plan&);

// em_forward where no gradient is wanted: path, mass and length lie in the workspace.
void em_attend(const Call&, const Forward&, Arena workspace);
int64_t em_attend_bytes(const Problem&, const Plan&);

struct Backward {
  Features x, grad_y, grad_x;
  Weight weight;
  const float* path = nullptr;  // as em_forward left them
  const float* bases = nullptr;
  const float* mass = nullptr;
  const float* length = nullptr;
  const float* grad_bases = nullptr;  // [G, C, K] of the last bases, or null
  float* grad_initial = nullptr;      // [G, C, K] of the initial bases, or null: not wanted
};
void em_backward(const Call&, const Backward&, Arena workspace);
int64_t em_backward_bytes(const Problem&, const Plan&);

}  // namespace ema
