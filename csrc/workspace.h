// The memory of a call between its kernels: pieces of one buffer that the caller hands in.
#pragma once
#include "plan.h"

namespace ema {

// Takes pieces off a buffer, one behind the other. Without a buffer it only counts, so that what is asked for and what
// is used are the same code.
class Arena {
 public:
  explicit Arena(void* memory = nullptr) : begin_(reinterpret_cast<uintptr_t>(memory)) {}

  void* take(int64_t bytes) {
    void* piece = reinterpret_cast<void*>(begin_ + used_);
    used_ += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
  }
  float* take_floats(int64_t count) { return static_cast<float*>(take(count * static_cast<int64_t>(sizeof(float)))); }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t ALIGNMENT = 256;
  uintptr_t begin_;
  int64_t used_ = 0;
};

// Bytes of [G, N, Kp] and of rows [G, Kp, Cp] in the dtype of the features; numbers in [G, Kp].
inline int64_t responsibility_bytes(const Problem& problem) {
  return int64_t{problem.images()} * problem.positions * padded_bases(problem.num_bases) * element_size(problem.dtype);
}
inline int64_t per_base(const Problem& problem) { return int64_t{problem.images()} * padded_bases(problem.num_bases); }
inline int64_t row_bytes(const Problem& problem, int channels) {
  return per_base(problem) * padded_channels(channels) * element_size(problem.dtype);
}

// Features of 16 bits behind each other, but that all rows start at multiples of 32 bytes: at the sectors of the memory.
inline Features aligned_rows(const Problem& problem, int channels, void* memory) {
  const bool columns = problem.positions_fastest;
  Features aligned;
  aligned.data = memory;
  aligned.channels = channels;
  aligned.position_stride = columns ? 1 : round_up(channels, 16);
  aligned.channel_stride = columns ? round_up(problem.positions, 16) : 1;
  aligned.head_stride = columns ? channels * aligned.channel_stride : problem.positions * aligned.position_stride;
  aligned.batch_stride = problem.heads * aligned.head_stride;
  return aligned;
}

// Memory for them, or null where the plan wants no copy.
inline void* take_aligned(const Problem& problem, const Plan& plan, Arena& arena) {
  const Features rows = aligned_rows(problem, problem.channels, nullptr);
  return plan.copies ? arena.take(2 * problem.batch * rows.batch_stride) : nullptr;
}

// Splits of which each has a slot of partial sums.
inline int fused_splits(const EStepPlan& e_step) { return e_step.fused ? e_step.splits : 0; }

// Products [G, N, Kp] of float32 that reconstruct_gradient makes, or null.
inline float* take_products(const Problem& problem, const MStepPlan& reconstruct_gradient, Arena& arena) {
  return reconstruct_gradient.hopper ? arena.take_floats(per_base(problem) * problem.positions) : nullptr;
}

// Slots of partial sums [G, splits, Kp, Cp] and of partial masses [G, splits, Kp].
struct Slots {
  float* sums;
  float* masses;

  // `sum_channels` is the largest splits * channels, `mass_splits` the largest splits that will be used.
  Slots(const Problem& problem, int64_t sum_channels, int mass_splits, Arena& arena)
      : sums(arena.take_floats(per_base(problem) * sum_channels)),
        masses(arena.take_floats(per_base(problem) * mass_splits)) {}

  // For an E-step, or its gradient, and the M-step after it.
  Slots(const Problem& problem, const EStepPlan& e_step, const MStepPlan& m_step, Arena& arena)
      : Slots(problem, int64_t{e_step.fused ? e_step.splits : m_step.splits} * padded_channels(problem.channels),
              e_step.splits, arena) {}
};

}  // namespace ema
