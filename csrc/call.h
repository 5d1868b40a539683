// A call in progress: its kernels one after the other on one stream, every launch checked.
#pragma once
#include <stdexcept>

#include "hopper/hopper.h"
#include "kernels/kernels.h"
#include "workspace.h"

namespace ema {

// A launch that failed; the message names the kernel, the shape and CUDA's reason.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Makes a device the current one of this thread; raises LaunchError.
void use_device(int ordinal);

// Memory of iterations: the bases as rows, responsibilities where they are stored, and partial sums.
struct IterationSpace {
  void* logit_rows;
  void* responsibilities;           // null: they stay on chip
  void* weighted_responsibilities;  // null: they stay on chip or there are no weights
  float* weight_maxima;             // null: weights need not be divided
  Slots slots;
  void* x;                          // for a copy of the features, or null

  // `keeps` if responsibilities are wanted afterwards.
  IterationSpace(const Problem& problem, const Plan& plan, bool keeps, Arena& arena);
};

struct Call {
  const Problem& problem;
  const Plan& plan;
  cudaStream_t stream;

  // Raises LaunchError unless `error` is success.
  void check(const char* kernel, cudaError_t error) const;

  // Bases as rows, times `factor`; those of any strides also as dense [G, C, K] unless `dense` is null.
  void pack(const float* bases, int channels, float factor, void* rows) const;
  void pack(const Bases& bases, int channels, float factor, void* rows, float* dense = nullptr) const;

  // The features themselves, or a copy of them with aligned rows in `memory` if they cannot be boxed; null: themselves.
  Features aligned(const Features& features, void* memory) const;
  // The same, but where plan.rows_gradient serves, the copy has yet to be made, by `respond`.
  Features aligned_on_the_way(const Features& features, void* memory) const;

  // What the iterations need to know of the weights.
  void look_at(const Weight& weight, const IterationSpace& space) const;

  // E-step and M-step from space.logit_rows, in one kernel where the plan says so. With `keeps`, space.responsibilities
  // are those of this iteration afterwards, not weighted.
  Partials iterate(const Features& x, const Weight& weight, const float* logit_bias, bool keeps,
                   const IterationSpace& space) const;

  // E-step alone: responsibilities [G, N, Kp]. `masses` is memory for its partial masses. Unless its data is null, `copy`
  // are the aligned rows that x is copied to on the way.
  void respond(const Features& x, const void* logit_rows, const float* logit_bias, void* responsibilities,
               float* masses, const Features& copy = {}) const;

  // features^T responsibilities, into the slots' sums.
  Partials multiply(const MStepPlan& m_step_plan, const Features& features, const void* responsibilities,
                    const Slots& slots) const;

  // Both gradients of a reconstruction where plan.reconstruct_gradient serves.
  Partials reconstruct_backward(const hopper::ReconstructGradient& io) const;
  // Where plan.rows_gradient does.
  Partials rows_backward(const hopper::RowsGradient& io) const;

  // The gradient of the logits, and with `m_step` also x^T times it. Fills in the slots of `gradient`.
  Partials backward(const EStepPlan& e_step_plan, EStepGradient gradient, bool m_step, const Slots& slots) const;
};

}  // namespace ema
