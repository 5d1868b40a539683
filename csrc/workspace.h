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

// Memory for them, or null if they are not wanted.
inline void* take_aligned(const Problem& problem, bool wanted, Arena& arena) {
  const Features rows = aligned_rows(problem, problem.channels, nullptr);
  return wanted ? arena.take(2 * problem.batch * rows.batch_stride) : nullptr;
}

// Words of 4 bytes of the slots of an image in which partial sums of `channels` are left; an E-step that is not fused
// leaves none.
inline int64_t slot_words(const Problem& problem, int channels, int splits, bool half) {
  const int bases = padded_bases(problem.num_bases), width = padded_channels(channels);
  return splits * (half ? half_slot_words(bases, width) : int64_t{bases} * width);
}
inline int64_t slot_words(const Problem& problem, int channels, const MStepPlan& plan) {
  return slot_words(problem, channels, plan.splits, plan.half_slots);
}
inline int64_t slot_words(const Problem& problem, const EStepPlan& plan) {
  return plan.fused ? slot_words(problem, problem.channels, plan.splits, plan.half_slots) : 0;
}

// Products [G, N, Kp] of float32 that reconstruct_gradient makes, or null.
inline float* take_products(const Problem& problem, const MStepPlan& reconstruct_gradient, Arena& arena) {
  return reconstruct_gradient.hopper ? arena.take_floats(per_base(problem) * problem.positions) : nullptr;
}

// Slots of partial sums [G, splits, Kp, Cp], of float32 or of float16 with powers, and of partial masses [G, splits, Kp].
struct Slots {
  float* sums;
  float* masses;

  // `sum_words` are the most slot_words, `mass_splits` the most splits that will be used.
  Slots(const Problem& problem, int64_t sum_words, int mass_splits, Arena& arena)
      : sums(arena.take_floats(problem.images() * sum_words)),
        masses(arena.take_floats(per_base(problem) * mass_splits)) {}

  // For an E-step, or its gradient, and the M-step after it.
  Slots(const Problem& problem, const EStepPlan& e_step, const MStepPlan& m_step, Arena& arena)
      : Slots(problem, e_step.fused ? slot_words(problem, e_step) : slot_words(problem, problem.channels, m_step),
              e_step.splits, arena) {}
};

}  // namespace ema
