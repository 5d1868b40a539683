// The kernels for Hopper, one launch function each, with the contracts of kernels/kernels.h; a plan says where they serve.
// Limits: 16 bits, K <= 64, features that can be copied as boxes.
#pragma once
#include "../kernels/kernels.h"

namespace ema::hopper {

// What the plans count on. m_step: channels that a warpgroup multiplies by all bases, and how many warpgroups do.
constexpr int M_STEP_CHANNELS = 256, M_STEP_GROUPS = 2;
// rank_k_products: positions and channels of a tile, and bytes of 64 bases of them and of two tiles of results.
constexpr int PRODUCTS_TILE = 128, PRODUCTS_OPERAND_BYTES = PRODUCTS_TILE * 128;
constexpr int PRODUCTS_RESULT_BYTES = 2 * PRODUCTS_TILE * PRODUCTS_TILE * 2;

cudaError_t m_step(const Problem&, const MStepPlan& plan, const Features& features, const void* left, float* sums,
                   cudaStream_t stream);
cudaError_t rank_k_products(const Problem&, const ProductsPlan& plan, int products, const void* left, const void* right,
                            float factor, const Features& out, bool saturate, cudaStream_t stream);

}  // namespace ema::hopper
