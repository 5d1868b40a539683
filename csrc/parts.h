// The two halves of the loop, em_step and em_reconstruct, and their gradients. All gradients but that of x are float32.
#pragma once
#include "call.h"

namespace ema {

struct Step {
  Features x;
  Weight weight;
  Bases bases;
  const float* logit_bias = nullptr;  // [G, K] or null
  float* sums = nullptr;              // [G, C, K]
  float* mass = nullptr;              // [G, K]
};
void em_step(const Call&, const Step&, Arena workspace);
int64_t em_step_bytes(const Problem&, const Plan&);

struct StepBackward {
  Features x, grad_x;
  Weight weight;
  Bases bases;
  const float* logit_bias = nullptr;
  const float* grad_sums = nullptr;   // [G, C, K]
  const float* grad_mass = nullptr;   // [G, K]
  float* grad_bases = nullptr;        // [G, C, K]
  float* grad_logit_bias = nullptr;   // [G, K]
};
void em_step_backward(const Call&, const StepBackward&, Arena workspace);
int64_t em_step_backward_bytes(const Problem&, const Plan&);

struct Reconstruct {
  Features x, y;
  Bases logit_bases, value_bases;
  const float* logit_bias = nullptr;
};
void em_reconstruct(const Call&, const Reconstruct&, Arena workspace);
int64_t em_reconstruct_bytes(const Problem&, const Plan&);

struct ReconstructBackward {
  Features x, grad_y, grad_x;
  Bases logit_bases, value_bases;
  const float* logit_bias = nullptr;
  float* grad_logit_bases = nullptr;  // [G, C, K]
  float* grad_value_bases = nullptr;  // [G, Cv, K]
  float* grad_logit_bias = nullptr;   // [G, K]
};
void em_reconstruct_backward(const Call&, const ReconstructBackward&, Arena workspace);
int64_t em_reconstruct_backward_bytes(const Problem&, const Plan&);

}  // namespace ema
