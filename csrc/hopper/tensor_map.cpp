#include "tensor_map.h"

namespace ema {

Matrices as_matrices(const Problem& problem, const Features& features) {
  Matrices matrices;
  matrices.data = features.data;
  matrices.batch_stride = features.batch_stride;
  matrices.head_stride = features.head_stride;
  matrices.batch = problem.batch;
  matrices.heads = problem.heads;
  matrices.line_stride = problem.positions_fastest ? features.channel_stride : features.position_stride;
  matrices.lines = problem.positions_fastest ? features.channels : problem.positions;
  matrices.columns = problem.positions_fastest ? problem.positions : features.channels;
  return matrices;
}

Matrices as_matrices(const Problem& problem, const void* data, int lines, int columns) {
  Matrices matrices;
  matrices.data = data;
  matrices.line_stride = columns;
  matrices.head_stride = int64_t{lines} * columns;
  matrices.batch_stride = matrices.head_stride * problem.heads;
  matrices.batch = problem.batch;
  matrices.heads = problem.heads;
  matrices.lines = lines;
  matrices.columns = columns;
  return matrices;
}

#ifndef EMA_SIMT
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Asked for at run time, so that the core is not linked with a driver.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
}

}  // namespace

cudaError_t make_tensor_map(TensorMap* map, const Matrices& matrices, int lines, int columns) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return cudaErrorInsufficientDriver;
  // the stride of a single matrix may be anything, and the driver looks at it all the same
  auto bytes = [](int64_t stride, int size) { return static_cast<cuuint64_t>(size > 1 ? 2 * stride : 16); };
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(matrices.columns), static_cast<cuuint64_t>(matrices.lines),
                               static_cast<cuuint64_t>(matrices.heads), static_cast<cuuint64_t>(matrices.batch)};
  const cuuint64_t strides[3] = {bytes(matrices.line_stride, matrices.lines),
                                 bytes(matrices.head_stride, matrices.heads),
                                 bytes(matrices.batch_stride, matrices.batch)};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(columns), static_cast<cuuint32_t>(lines), 1, 1};
  const auto permuted = columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result =
      encode(&map->map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(matrices.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, permuted, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
#endif

}  // namespace ema
