// How sums of responsibilities and lengths of bases divide.
#pragma once
#include "platform.h"

namespace ema {

// eps + value or max(eps, value); 1 where that is 0, which takes eps = 0: there 0 is divided.
EMA_DEVICE float divisor(float value, float eps, bool eps_max) {
  float shifted = eps_max ? (value < eps ? eps : value) : value + eps;
  return shifted == 0.f ? 1.f : shifted;
}

}  // namespace ema
