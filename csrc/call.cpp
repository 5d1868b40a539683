#include "call.h"

#include <string>

#include "hopper/hopper.h"

namespace ema {
namespace {

std::string shape_of(const Problem& problem) {
  const char* dtypes[] = {"float32", "bfloat16", "float16"};
  auto part = [](const char* name, int value) { return std::string(name) + " = " + std::to_string(value) + ", "; };
  return part("B", problem.batch) + part("H", problem.heads) + part("N", problem.positions) +
         part("C", problem.channels) + part("Cv", problem.value_channels) + part("K", problem.num_bases) +
         dtypes[static_cast<int>(problem.dtype)];
}

// Partial sums with responsibilities.
Partials sums_of(const float* sums, const MStepPlan& plan) {
  Partials partials;
  partials.sums = sums;
  partials.sum_splits = plan.splits;
  partials.half_slots = plan.half_slots;
  partials.sum_factor = 1 / RESPONSIBILITY_SCALE;
  return partials;
}

}  // namespace

void use_device(int ordinal) {
  const cudaError_t error = cudaSetDevice(ordinal);
  if (error != cudaSuccess)
    throw LaunchError("device " + std::to_string(ordinal) + " cannot be used: " + cudaGetErrorString(error));
}

IterationSpace::IterationSpace(const Problem& problem, const Plan& plan, bool keeps, Arena& arena)
    : logit_rows(arena.take(row_bytes(problem, problem.channels))),
      responsibilities(nullptr),
      weighted_responsibilities(nullptr),
      weight_maxima(nullptr),
      slots(problem, plan.iteration, plan.m_step, arena),
      x(take_aligned(problem, plan.copies, arena)) {
  const bool stored = !plan.iteration.fused;
  if (keeps || (stored && !problem.weighted)) responsibilities = arena.take(responsibility_bytes(problem));
  if (stored && problem.weighted) weighted_responsibilities = arena.take(responsibility_bytes(problem));
  if (problem.weighted && problem.dtype == Dtype::float16)
    weight_maxima = arena.take_floats(int64_t{problem.images()} * WEIGHT_PARTS);
}

void Call::check(const char* kernel, cudaError_t error) const {
  if (error != cudaSuccess)
    throw LaunchError(std::string("the launch of ") + kernel + " failed for " + shape_of(problem) + ": " +
                      cudaGetErrorString(error));
}

void Call::pack(const float* bases, int channels, float factor, void* rows) const {
  const int64_t image = int64_t{channels} * problem.num_bases;
  pack(Bases{bases, image * problem.heads, image, problem.num_bases, 1}, channels, factor, rows);
}

void Call::pack(const Bases& bases, int channels, float factor, void* rows, float* dense) const {
  check("pack_rows", pack_rows(problem, bases, channels, factor, rows, dense, stream));
}

Features Call::aligned(const Features& features, void* memory) const {
  if (memory == nullptr || can_be_boxed(features, problem.positions_fastest)) return features;
  const Features copy = aligned_rows(problem, features.channels, memory);
  check("align_rows", align_rows(problem, features, copy, stream));
  return copy;
}

Features Call::aligned_on_the_way(const Features& features, void* memory) const {
  if (!plan.rows_gradient.hopper || can_be_boxed(features, problem.positions_fastest)) return aligned(features, memory);
  return aligned_rows(problem, features.channels, memory);
}

void Call::look_at(const Weight& weight, const IterationSpace& space) const {
  if (space.weight_maxima != nullptr)
    check("weight_maxima", weight_maxima(problem, weight, space.weight_maxima, stream));
}

Partials Call::iterate(const Features& x, const Weight& weight, const float* logit_bias, bool keeps,
                       const IterationSpace& space) const {
  const EStepPlan& e_step_plan = plan.iteration;
  const bool stored = !e_step_plan.fused;
  EStep io;
  io.x = x;
  io.weight = weight;
  io.weight_maxima = space.weight_maxima;
  io.logit_rows = space.logit_rows;
  io.logit_bias = logit_bias;
  if (keeps || (stored && !problem.weighted)) io.responsibilities = space.responsibilities;
  if (stored && problem.weighted) io.weighted_responsibilities = space.weighted_responsibilities;
  if (!stored) io.sums = space.slots.sums;
  io.masses = space.slots.masses;
  check("e_step", e_step(problem, e_step_plan, io, stream));
  Partials partials;
  partials.sums = space.slots.sums;
  partials.masses = space.slots.masses;
  partials.sum_splits = partials.mass_splits = e_step_plan.splits;
  partials.half_slots = e_step_plan.half_slots;
  partials.sum_factor = partials.mass_factor = 1 / RESPONSIBILITY_SCALE;
  partials.weight_maxima = space.weight_maxima;
  if (stored) {
    const void* left = problem.weighted ? space.weighted_responsibilities : space.responsibilities;
    check("m_step", m_step(problem, plan.m_step, x, left, space.slots.sums, stream));
    partials.sum_splits = plan.m_step.splits;
    partials.half_slots = plan.m_step.half_slots;
  }
  return partials;
}

void Call::respond(const Features& x, const void* logit_rows, const float* logit_bias, void* responsibilities,
                   float* masses, const Features& copy) const {
  EStep io;
  io.x = x;
  io.copy = copy;
  io.logit_rows = logit_rows;
  io.logit_bias = logit_bias;
  io.responsibilities = responsibilities;
  io.masses = masses;
  check("e_step", e_step(problem, plan.e_step, io, stream));
}

Partials Call::multiply(const MStepPlan& m_step_plan, const Features& features, const void* responsibilities,
                        const Slots& slots) const {
  check("m_step", m_step(problem, m_step_plan, features, responsibilities, slots.sums, stream));
  return sums_of(slots.sums, m_step_plan);
}

Partials Call::reconstruct_backward(const hopper::ReconstructGradient& io) const {
  check("reconstruct_gradient", hopper::reconstruct_gradient(problem, plan.reconstruct_gradient, io, stream));
  return sums_of(io.sums, plan.reconstruct_gradient);
}

Partials Call::rows_backward(const hopper::RowsGradient& io) const {
  check("rows_gradient", hopper::rows_gradient(problem, plan.rows_gradient, io, stream));
  return sums_of(io.sums, plan.rows_gradient);
}

Partials Call::backward(const EStepPlan& e_step_plan, EStepGradient gradient, bool m_step, const Slots& slots) const {
  EStepPlan launched = e_step_plan;
  launched.fused = e_step_plan.fused && m_step;
  gradient.sums = launched.fused ? slots.sums : nullptr;
  gradient.masses = slots.masses;
  check("e_step_gradient", e_step_gradient(problem, launched, gradient, stream));
  Partials partials;
  partials.sums = slots.sums;
  partials.masses = slots.masses;
  partials.sum_splits = partials.mass_splits = e_step_plan.splits;
  partials.half_slots = e_step_plan.half_slots;
  partials.sum_factor = problem.scale;
  if (m_step && !launched.fused) {
    check("m_step", ema::m_step(problem, plan.m_step, gradient.x, gradient.grad_logits, slots.sums, stream));
    partials.sum_splits = plan.m_step.splits;
    partials.half_slots = plan.m_step.half_slots;
  }
  return partials;
}

}  // namespace ema
