// The kernels for Hopper, one launch function each, with the contracts of kernels/kernels.h; a plan says where they
// serve. Limits: 16 bits, K <= 64, features that can be copied as boxes.
#pragma once
#include "../kernels/kernels.h"

namespace ema::hopper {

// Whether partial sums are float16: they have more digits than bfloat16 features give them.
EMA_HOST_DEVICE constexpr bool half_slots(Dtype dtype) { return dtype == Dtype::bfloat16; }

// What the plans count on. m_step: channels that a warpgroup multiplies by all bases, and how many warpgroups do.
constexpr int M_STEP_CHANNELS = 256, M_STEP_GROUPS = 2;
// rank_k_products: positions and channels of a tile, and bytes of 64 bases of them and of two tiles of results.
constexpr int PRODUCTS_TILE = 128, PRODUCTS_OPERAND_BYTES = PRODUCTS_TILE * 128;
constexpr int PRODUCTS_RESULT_BYTES = 2 * PRODUCTS_TILE * PRODUCTS_TILE * 2;
// unit_tail: positions and channels of a tile; bytes of 64 inner channels of the bases and of the weight, and of what
// the warpgroups have for themselves, y and responsibilities of two tiles.
constexpr int UNIT_TAIL_POSITIONS = 128, UNIT_TAIL_OUTPUTS = 256, UNIT_TAIL_SLOT_BYTES = (64 + UNIT_TAIL_OUTPUTS) * 128;
constexpr int UNIT_TAIL_GROUPS_BYTES = 2 * UNIT_TAIL_POSITIONS * (UNIT_TAIL_OUTPUTS + 2 * 64);
constexpr int UNIT_TAIL_BARRIER_BYTES = 128;
constexpr int UNIT_TAIL_ENDS_BYTES = UNIT_TAIL_POSITIONS / 64 * UNIT_TAIL_OUTPUTS * 16;  // of x whose rows start anywhere

// e_step: channels at most, and the padded ones of the kernel that serves some: what lies beyond arrives as zeros.
constexpr int E_STEP_CHANNELS = 512;
EMA_HOST_DEVICE constexpr int compiled_channels(int channels) {
  return channels <= 64 ? 64 : channels <= 128 ? 128 : channels <= 256 ? 256 : E_STEP_CHANNELS;
}
constexpr int TILE_POSITIONS = 32;  // of a tile of features
// Shared memory of a stage, features and responsibilities, and what there is besides. The M-step of a stage ends after
// that of the next began, and that waits for the E-step of one more, whose features may be made with the first ones of
// one more: 4 stages are the least.
EMA_HOST_DEVICE constexpr int stage_bytes(int channels) { return TILE_POSITIONS * (2 * channels + 128); }
constexpr int E_STEP_MIN_STAGES = 4, E_STEP_MAX_STAGES = 8;
constexpr int E_STEP_BYTES = TILE_POSITIONS * 128               // responsibilities that are being stored
                             + TILE_POSITIONS * 8 * 4 + 64 * 4  // statistics of a softmax, the bias
                             + E_STEP_MAX_STAGES * 2 * 8;       // barriers

cudaError_t e_step(const Problem&, const EStepPlan& plan, const EStep&, cudaStream_t stream);
cudaError_t e_step_gradient(const Problem&, const EStepPlan& plan, const EStepGradient&, cudaStream_t stream);

// The gradient of a reconstruction y = responsibilities value_bases^T to both, responsibilities those of x and its bases.
struct ReconstructGradient {
  Features x, grad_y;
  const void* logit_rows = nullptr;   // [G, Kp, Cp of x]
  const float* logit_bias = nullptr;  // [G, K], or null
  const void* value_rows = nullptr;   // [G, Kp, Cp of grad_y]
  float* products = nullptr;          // grad_y value_rows^T, [G, N, Kp]
  float* sums = nullptr;              // grad_y^T responsibilities, [G, splits, Kp, Cp of grad_y]
};
cudaError_t reconstruct_gradient(const Problem&, const MStepPlan& plan, const ReconstructGradient&, cudaStream_t stream);

// The same from stored responsibilities, with positions fastest and rows of grad_y that start anywhere.
struct RowsGradient {
  Features grad_y;
  const void* value_rows = nullptr;        // [G, Kp, Cp]
  const void* responsibilities = nullptr;  // [G, N, Kp]
  float* products = nullptr;               // as above
  float* sums = nullptr;
};
cudaError_t rows_gradient(const Problem&, const MStepPlan& plan, const RowsGradient&, cudaStream_t stream);

cudaError_t m_step(const Problem&, const MStepPlan& plan, const Features& features, const void* left, float* sums,
                   cudaStream_t stream);
cudaError_t rank_k_products(const Problem&, const ProductsPlan& plan, int products, const void* left, const void* right,
                            float factor, const Features& out, bool saturate, cudaStream_t stream);
cudaError_t unit_tail(const Problem&, const UnitTailPlan& plan, const UnitTail&, cudaStream_t stream);

// pack_partials, convolve_sums, normalize and, unless logit_rows is null, convolve_bases in one launch: a cluster of up
// to END_ITERATION_BLOCKS blocks, one for every 64 channels, has the bases of an image.
constexpr int END_ITERATION_BLOCKS = 8;
constexpr int END_ITERATION_SPLITS = 8;  // with more, the blocks of all bases add them faster in a launch before
struct EndIteration {
  Convolution convolution;
  Partials partials;                // sums may be null: they are packed already
  PackedSums packed;
  float* convolved_sums = nullptr;  // [G, Kp, Cp] of float32
  Normalized next;
  void* logit_rows = nullptr;       // [G, Kp, Cp]
  float* logit_bias = nullptr;      // [G, K]
};
cudaError_t end_iteration(const Problem&, const EndIteration&, cudaStream_t stream);

}  // namespace ema::hopper
