// The tensor map of hopper/tensor_map.h on the CPU: what it was made of.
#pragma once
#include <cstdint>

namespace ema {

struct TensorMap {
  unsigned char* data;
  int64_t strides[4];  // bytes: column, line, head, batch
  int sizes[4];        // columns, lines, heads, batch
  int lines, columns;  // of a box

  int line_bytes() const { return 2 * columns; }
  int bytes() const { return lines * line_bytes(); }
};

}  // namespace ema
