// The EMA unit in evaluation: relu(x + conv2(relu(loop(conv1(x))))), both convolutions 1x1, from x to y in one call.
#pragma once
#include "call.h"

namespace ema {

struct Unit {
  Features x, y;
  Weight weight;
  Bases initial;
  Convolution first, second;
  float* bases = nullptr;  // [G, C, K]: the last ones
};
void em_unit(const Call&, const Unit&, Arena workspace);
int64_t em_unit_bytes(const Problem&, const Plan&);

}  // namespace ema
