// The loop on f = x W^T + b, where f is never made: a convolution of 1x1 with W and b is applied to bases and sums.
#pragma once
#include "call.h"

namespace ema {

// What the iterations of such a loop need and leave.
struct FoldedLoop {
  Features x;
  Weight weight;
  Bases initial;
  Convolution convolution;
  float* path = nullptr;    // [T, G, C, K]: the bases every iteration starts from, or null
  float* sums = nullptr;    // [T, G, C, K]: x^T weighted responsibilities, or null
  float* bases = nullptr;   // [G, C, K]: the last ones
  float* mass = nullptr;    // [T, G, K], or [G, K] without a path: of the last iteration
  float* length = nullptr;  // the same
};

// `rows` are those of the sums of x before the convolution is applied to them, and of the bases after it.
struct FoldedSpace {
  IterationSpace iteration;
  void* rows;
  float *powers, *packed_mass, *logit_bias;
  float* convolved_sums;  // of f, a slot of float32 for every image

  FoldedSpace(const Problem&, const Plan&, Arena&);
};

// All iterations. Afterwards space.rows are the last bases, space.iteration.responsibilities the last responsibilities.
void iterate_folded(const Call&, const FoldedLoop&, const FoldedSpace&);

struct FoldedForward {
  FoldedLoop loop;  // keeps everything
  Features y;
};
void em_folded_forward(const Call&, const FoldedForward&, Arena workspace);
int64_t em_folded_forward_bytes(const Problem&, const Plan&);

// The gradient of W is the sum over iterations, images and bases of grad_sums sums^T + path logit_sums^T, that of b the
// sum of grad_sums mass + path logit_mass.
struct FoldedBackward {
  Features x, grad_y, grad_x;
  Weight weight;
  Convolution convolution;
  const float* path = nullptr;  // as em_folded_forward left them
  const float* bases = nullptr;
  const float* mass = nullptr;
  const float* length = nullptr;
  const float* grad_bases = nullptr;  // [G, C, K] of the last bases, or null
  float* grad_sums = nullptr;         // [grad_iters, G, C, K]: of the sums of f
  float* logit_sums = nullptr;        // [grad_iters, G, C, K]: x^T times the gradient of the products with bases
  float* logit_mass = nullptr;        // [grad_iters, G, K]: the sum of that gradient over the positions
  float* grad_initial = nullptr;      // [G, C, K] of the initial bases, or null: not wanted
};
void em_folded_backward(const Call&, const FoldedBackward&, Arena workspace);
int64_t em_folded_backward_bytes(const Problem&, const Plan&);

}  // namespace ema
