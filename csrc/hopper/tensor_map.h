// Where the boxes of a matrix lie in memory, as Hopper's copy engine wants to know it.
#pragma once
#include "../device/platform.h"
#include "../problem.h"

#ifdef EMA_SIMT
#include "simt_tensor_map.h"
#else
#include <cuda.h>

namespace ema {

// A kernel gets it as `const __grid_constant__` and hands it on by reference.
struct TensorMap {
  CUtensorMap map;
};

}  // namespace ema
#endif

namespace ema {

// Matrices [batch, heads, lines, columns] of 16-bit numbers; strides in elements, all multiples of 8 but where the size
// is 1, and `data` a multiple of 16 bytes.
struct Matrices {
  const void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, line_stride = 0;
  int batch = 1, heads = 1, lines = 1, columns = 1;
};

// Features: a line is a position, or a channel when the positions are fastest.
Matrices as_matrices(const Problem&, const Features&);
// [G, lines, columns] without gaps, such as rows of bases and responsibilities.
Matrices as_matrices(const Problem&, const void* data, int lines, int columns);

// Boxes of `lines` lines (up to 256, a multiple of 8) of 64 or 32 columns. Shared memory gets zeros for what lies beyond
// the matrix. Needs a driver; an error says that there is none or that it refused.
cudaError_t make_tensor_map(TensorMap* map, const Matrices& matrices, int lines, int columns = 64);

}  // namespace ema
