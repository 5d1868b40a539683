// Pieces of features and bases on their way from global to shared memory while earlier ones are worked on.
#pragma once
#include "ptx.h"

namespace ema {

struct Pipeline {
  int total;
  int next = 0;  // the first piece that is not on its way yet

  EMA_DEVICE explicit Pipeline(int total) : total(total) {}

  // Makes piece i ready for the whole block, and starts those before `limit` with load(piece): their slots are free
  // once the block has left piece i - 1. All threads of the block take part.
  template <class Load>
  EMA_DEVICE void advance(int i, int limit, Load load) {
    // with few slots piece i itself may still have to wait for the block
    const bool late = next <= i;
    if (!late) copy_async_wait(next - 1 - i);
    __syncthreads();
    for (; next < total && next < limit; ++next) {
      load(next);
      copy_async_commit();
    }
    if (late) {
      copy_async_wait(next - 1 - i);
      __syncthreads();
    }
  }
};

}  // namespace ema
