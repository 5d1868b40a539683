// The kernels of the core, one launch function each. G = images, Kp and Cp = padded bases and channels.
//
// Responsibilities and gradients of logits are [G, N, Kp] in the dtype of the features, zero beyond K. Responsibilities
// are stored and summed times RESPONSIBILITY_SCALE. Rows of bases are [G, Kp, Cp]. Partial sums are slots
// [G, splits, Kp, Cp] of float32, or of float16 with powers (device/half_slot.h) where a plan says half_slots; partial
// masses are [G, splits, Kp]. Every function launches on `stream`, allocates nothing, waits for nothing, and returns the
// error of the launch.
// Limits: K <= 256, C and Cv <= MAX_CHANNELS.
#pragma once
#include "../device/platform.h"
#include "../plan.h"
#include "../problem.h"

namespace ema {

constexpr int MAX_CHANNELS = 1024, MAX_BASES = 256;

// float16 has full digits from 2^-14 on: with this factor responsibilities keep theirs down to 2^-28, and with a weight
// below 2 they stay in range.
constexpr float RESPONSIBILITY_SCALE = 16384;

// Bases [batch, heads, C, K] of float32 with any strides, times `factor`, as rows; and, unless `dense` is null, as they
// are to dense [G, C, K].
struct Bases {
  const float* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, channel_stride = 0, base_stride = 0;
};
cudaError_t pack_rows(const Problem&, const Bases& bases, int channels, float factor, void* rows, float* dense,
                      cudaStream_t stream);

// A copy of features of 16 bits from any rows to those that start at multiples of 16 bytes (aligned_rows of workspace.h).
cudaError_t align_rows(const Problem&, const Features& in, const Features& out, cudaStream_t stream);

// The largest weight in each of WEIGHT_PARTS parts of every image: maxima [G, WEIGHT_PARTS]. For float16 weights are
// divided by a power of two near the largest one, so that weights of any size meet its range.
cudaError_t weight_maxima(const Problem&, const Weight& weight, float* maxima, cudaStream_t stream);

// E-step, and the partial masses; with `sums` also the M-step of the same tile while it is on chip (plan.fused).
struct EStep {
  Features x;
  Features copy;                           // of x with aligned rows, made on the way if x cannot be boxed and `data` is set
  Weight weight;
  const float* weight_maxima = nullptr;    // or null: weights are not divided
  const void* logit_rows = nullptr;        // [G, Kp, Cp], times the temperature already
  const float* logit_bias = nullptr;       // [G, K] or null
  void* responsibilities = nullptr;        // [G, N, Kp], not weighted, or null
  void* weighted_responsibilities = nullptr;  // [G, N, Kp] or null
  float* sums = nullptr;                   // [G, splits, Kp, Cp] or null
  float* masses = nullptr;                 // [G, splits, Kp]
};
cudaError_t e_step(const Problem&, const EStepPlan& plan, const EStep&, cudaStream_t stream);

// Partial sums of features^T left: [G, splits, Kp, Cp of the features].
cudaError_t m_step(const Problem&, const MStepPlan& plan, const Features& features, const void* left, float* sums,
                   cudaStream_t stream);

// The gradient of the logits. Responsibilities get one from the sums, weight * (x sums_rows^T * powers + grad_mass),
// unless sums_rows is null, and one from the reconstruction, grad_y value_rows^T, unless value_rows is null.
struct EStepGradient {
  Features x, grad_y;
  Weight weight;
  const void* logit_rows = nullptr;
  const float* logit_bias = nullptr;
  const void* sums_rows = nullptr;    // [G, Kp, Cp], divided by powers
  const float* powers = nullptr;      // [G, Kp]
  const float* grad_mass = nullptr;   // [G, Kp]
  const void* value_rows = nullptr;   // [G, Kp, Cp of grad_y]
  const float* value_products = nullptr;  // grad_y value_rows^T, [G, N, Kp]: instead of both where plan.hopper
  void* responsibilities = nullptr;   // [G, N, Kp]; if there are sums_rows not scaled, but weighted and times powers
  void* grad_logits = nullptr;        // [G, N, Kp]
  float* sums = nullptr;              // x^T grad_logits, [G, splits, Kp, Cp], or null (plan.fused)
  float* masses = nullptr;            // sum of grad_logits over the positions, [G, splits, Kp]
};
cudaError_t e_step_gradient(const Problem&, const EStepPlan& plan, const EStepGradient&, cudaStream_t stream);

// Partial sums and masses added in a fixed order, then times their factor; sum_splits or mass_splits may differ.
struct Partials {
  const float* sums = nullptr;
  int sum_splits = 0;
  bool half_slots = false;
  float sum_factor = 1;
  const float* masses = nullptr;  // null: no mass is wanted
  int mass_splits = 0;
  float mass_factor = 1;
  const float* weight_maxima = nullptr;  // those that the weights were divided by, or null
};

// total: sums as [G, C, K], or null; and the mass [G, K], or null.
cudaError_t add_partials(const Problem&, int channels, const Partials&, float* total, float* mass, cudaStream_t stream);

// The same with the sums as rows [G, Kp, Cp], divided by powers, and the mass, both [G, Kp]; and, unless they are null, as
// add_partials has them.
struct PackedSums {
  void* rows = nullptr;
  float* powers = nullptr;
  float* mass = nullptr;
  float* total = nullptr;
  float* total_mass = nullptr;
};
cudaError_t pack_partials(const Problem&, const Partials&, const PackedSums& out, cudaStream_t stream);

// The end of the M-step: mass and length [G, K], the bases [G, C, K], and their rows times `scale` and plain.
struct Normalized {
  float* mass = nullptr;
  float* length = nullptr;
  float* bases = nullptr;
  void* logit_rows = nullptr;  // times the temperature, or null
  void* value_rows = nullptr;  // or null
};
cudaError_t normalize(const Problem&, const Partials&, const Normalized&, cudaStream_t stream);

// Gradient of the undivided sums from partial sums + extra, the gradient of the bases that they became.
struct SumsGradient {
  Partials partials;
  const float* extra = nullptr;   // [G, C, K] or null
  const float* bases = nullptr;   // [G, C, K]; null: what arrives is the gradient of the sums already
  const float* mass = nullptr;    // [G, K]; without bases the gradient of the mass
  const float* length = nullptr;  // [G, K]
  void* rows = nullptr;           // [G, Kp, Cp], divided by powers
  float* powers = nullptr;        // [G, Kp]
  float* grad_mass = nullptr;     // [G, Kp]
  float* total = nullptr;         // [G, C, K], or null
};
cudaError_t normalize_gradient(const Problem&, const SumsGradient&, cudaStream_t stream);

// out = factor * sum over s of left[s] right[s]: left [products, G, N, Kp], right [products, G, Kp, Cp of out]. With
// `saturate` what float16 cannot hold becomes its largest number.
cudaError_t rank_k_products(const Problem&, const ProductsPlan& plan, int products, const void* left, const void* right,
                            float factor, const Features& out, bool saturate, cudaStream_t stream);

// A convolution of 1x1 from C channels to C: weight [C, C] (out, in) in the dtype of the features, dense, bias [C].
struct Convolution {
  const void* weight = nullptr;
  const float* bias = nullptr;
};

// Bases behind the convolution as bases in front of it: with rows [G, Kp, Cp] of them, factor * rows weight as
// logit_rows [G, Kp, Cp], and factor * rows bias as logit_bias [G, K].
cudaError_t convolve_bases(const Problem&, const Convolution&, const void* rows, float factor, void* logit_rows,
                           float* logit_bias, cudaStream_t stream);

// The gradient of sums behind the convolution as that of sums in front of it: from rows [G, Kp, Cp], divided by powers
// [G, Kp], to rows with the same powers, and adds that of the mass to grad_mass [G, Kp].
cudaError_t convolve_gradient(const Problem&, const Convolution&, const void* rows, const float* powers,
                              void* convolved_rows, float* grad_mass, cudaStream_t stream);

// Sums of features as sums of what the convolution makes of them: weight sums + bias mass, one slot [G, 1, Kp, Cp].
cudaError_t convolve_sums(const Problem&, const Convolution&, const PackedSums& packed, float* sums,
                          cudaStream_t stream);

// The end of the unit: y = relu(x + R weight^T + bias) with R = relu(responsibilities value_rows), rounded to the dtype
// of the features; responsibilities [G, N, Kp] as e_step leaves them, value_rows [G, Kp, Cp].
struct UnitTail {
  Features x, y;
  const void* responsibilities = nullptr;
  const void* value_rows = nullptr;
  Convolution convolution;
};
cudaError_t unit_tail(const Problem&, const UnitTailPlan& plan, const UnitTail&, cudaStream_t stream);

}  // namespace ema
