// The tensor map of hopper/tensor_map.h on the CPU: what it was made of.
#pragma once
#include <cstdint>

namespace ema {

struct TensorMap {
  unsigned char* data;
  int64_t strides[4];  // bytes: column, line, head, batch
  int sizes[4];        // columns, lines, heads, batch
  int lines;           // of a box
};

}  // namespace ema
