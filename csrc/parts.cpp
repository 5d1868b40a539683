#include "parts.h"

#include <algorithm>

#include "products.h"

namespace ema {
namespace {

struct StepBackwardSpace {
  Products products;
  Slots slots;
  float* powers;
  float* grad_mass;

  StepBackwardSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : products(problem, 2, arena),
        slots(problem, plan.gradient, plan.m_step, arena),
        powers(arena.take_floats(per_base(problem))),
        grad_mass(arena.take_floats(per_base(problem))) {}
};

struct ReconstructSpace {
  void* logit_rows;
  void* value_rows;
  void* responsibilities;
  float* masses;

  ReconstructSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : logit_rows(arena.take(row_bytes(problem, problem.channels))),
        value_rows(arena.take(row_bytes(problem, problem.value_channels))),
        responsibilities(arena.take(responsibility_bytes(problem))),
        masses(arena.take_floats(per_base(problem) * plan.e_step.splits)) {}
};

struct ReconstructBackwardSpace {
  Products products;
  void* value_rows;
  void* responsibilities;  // null: they stay on chip
  float* value_products;   // null: the gradient of the logits makes them
  Slots slots;

  ReconstructBackwardSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : products(problem, 1, arena),
        value_rows(arena.take(row_bytes(problem, problem.value_channels))),
        responsibilities(plan.reconstruct_gradient.hopper ? nullptr : arena.take(responsibility_bytes(problem))),
        value_products(take_products(problem, plan.reconstruct_gradient, arena)),
        slots(problem,
              std::max({slot_words(problem, problem.channels, plan.m_step), slot_words(problem, plan.value_gradient),
                        slot_words(problem, problem.value_channels, plan.value_m_step),
                        slot_words(problem, problem.value_channels, plan.reconstruct_gradient)}),
              plan.value_gradient.splits, arena) {}
};

}  // namespace

void em_step(const Call& call, const Step& io, Arena workspace) {
  const Problem& problem = call.problem;
  const IterationSpace space(problem, call.plan, false, workspace);
  call.pack(io.bases, problem.channels, problem.scale, space.logit_rows);
  call.look_at(io.weight, space);
  const Partials partials = call.iterate(io.x, io.weight, io.logit_bias, false, space);
  call.check("add_partials", add_partials(problem, problem.channels, partials, io.sums, io.mass, call.stream));
}

int64_t em_step_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  IterationSpace(problem, plan, false, arena);
  return arena.used();
}

void em_step_backward(const Call& call, const StepBackward& io, Arena workspace) {
  const Problem& problem = call.problem;
  const StepBackwardSpace space(problem, call.plan, workspace);
  const Products& products = space.products;
  call.pack(io.bases, problem.channels, problem.scale, products.right(1));
  SumsGradient sums;
  sums.extra = io.grad_sums;
  sums.mass = io.grad_mass;
  sums.rows = products.right(0);
  sums.powers = space.powers;
  sums.grad_mass = space.grad_mass;
  call.check("normalize_gradient", normalize_gradient(problem, sums, call.stream));
  EStepGradient e_step = products.iteration(0, io.x, io.weight, sums);
  e_step.logit_bias = io.logit_bias;
  const Partials partials = call.backward(call.plan.gradient, e_step, true, space.slots);
  call.check("add_partials",
             add_partials(problem, problem.channels, partials, io.grad_bases, io.grad_logit_bias, call.stream));
  call.check("rank_k_products",
             rank_k_products(problem, call.plan.grad_x, 2, products.left(0), products.right(0), 1, io.grad_x, true,
                             call.stream));
}

int64_t em_step_backward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  StepBackwardSpace(problem, plan, arena);
  return arena.used();
}

void em_reconstruct(const Call& call, const Reconstruct& io, Arena workspace) {
  const Problem& problem = call.problem;
  const ReconstructSpace space(problem, call.plan, workspace);
  call.pack(io.logit_bases, problem.channels, problem.scale, space.logit_rows);
  call.pack(io.value_bases, problem.value_channels, 1, space.value_rows);
  call.respond(io.x, space.logit_rows, io.logit_bias, space.responsibilities, space.masses);
  call.check("rank_k_products",
             rank_k_products(problem, call.plan.reconstruction, 1, space.responsibilities, space.value_rows,
                             1 / RESPONSIBILITY_SCALE, io.y, false, call.stream));
}

int64_t em_reconstruct_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  ReconstructSpace(problem, plan, arena);
  return arena.used();
}

void em_reconstruct_backward(const Call& call, const ReconstructBackward& io, Arena workspace) {
  const Problem& problem = call.problem;
  const Plan& plan = call.plan;
  const ReconstructBackwardSpace space(problem, plan, workspace);
  call.pack(io.logit_bases, problem.channels, problem.scale, space.products.right(0));
  call.pack(io.value_bases, problem.value_channels, 1, space.value_rows);
  EStepGradient e_step;
  e_step.x = io.x;
  e_step.grad_y = io.grad_y;
  e_step.logit_rows = space.products.right(0);
  e_step.logit_bias = io.logit_bias;
  e_step.value_rows = space.value_rows;
  e_step.value_products = space.value_products;
  e_step.grad_logits = space.products.left(0);
  auto add_values = [&](const Partials& values) {
    call.check("add_partials",
               add_partials(problem, problem.value_channels, values, io.grad_value_bases, nullptr, call.stream));
  };
  if (plan.reconstruct_gradient.hopper) {
    add_values(call.reconstruct_backward({io.x, io.grad_y, e_step.logit_rows, io.logit_bias, space.value_rows,
                                          space.value_products, space.slots.sums}));
  } else {
    e_step.responsibilities = space.responsibilities;
  }
  const Partials logits = call.backward(plan.value_gradient, e_step, true, space.slots);
  call.check("add_partials", add_partials(problem, problem.channels, logits, io.grad_logit_bases, io.grad_logit_bias,
                                          call.stream));
  if (!plan.reconstruct_gradient.hopper)
    add_values(call.multiply(plan.value_m_step, io.grad_y, space.responsibilities, space.slots));
  call.check("rank_k_products", rank_k_products(problem, plan.value_grad_x, 1, space.products.left(0),
                                                space.products.right(0), 1, io.grad_x, true, call.stream));
}

int64_t em_reconstruct_backward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  ReconstructBackwardSpace(problem, plan, arena);
  return arena.used();
}

}  // namespace ema
