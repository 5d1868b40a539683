// What lies in the workspace between the kernels of a backward pass through iterations.
#pragma once
#include <algorithm>

#include "call.h"
#include "products.h"

namespace ema {

// Two products for every iteration: weighted responsibilities and the gradient of the sums, the gradient of the logits
// and the bases they were made with.
struct BackwardSpace {
  Products products;
  void* value_rows;
  float* value_products;  // null: the gradients with values make them
  Slots slots;
  float* powers;
  float* grad_mass;
  void *x, *grad_y;  // for copies of the features, or null

  BackwardSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : products(problem, 2 * problem.grad_iters, arena),
        value_rows(arena.take(row_bytes(problem, problem.channels))),
        value_products(problem.grad_iters > 1 && plan.reconstruct_gradient.hopper
                           ? static_cast<float*>(products.left(0))  // free until the first iteration's gradient
                           : take_products(problem, plan.reconstruct_gradient, arena)),
        slots(problem,
              std::max({slot_words(problem, problem.channels, plan.m_step),
                        slot_words(problem, problem.channels, plan.reconstruct_gradient),
                        slot_words(problem, problem.channels, plan.rows_gradient),
                        slot_words(problem, plan.gradient), slot_words(problem, plan.last_gradient)}),
              std::max({plan.e_step.splits, plan.last_gradient.splits, plan.gradient.splits,
                        plan.first_gradient.splits}),
              arena),
        powers(arena.take_floats(per_base(problem))),
        grad_mass(arena.take_floats(per_base(problem))),
        x(take_aligned(problem, plan.copies || plan.rows_gradient.hopper, arena)),
        grad_y(take_aligned(problem, plan.copies || (plan.any_rows && !plan.rows_gradient.hopper), arena)) {}

  // The gradient of the last bases, from the last responsibilities and grad_y; it needs the rows of all bases. `given` is
  // what x may have yet to be copied from.
  Partials grad_bases(const Call& call, const Features& given, const Features& x, const Features& grad_y,
                      const float* logit_bias) const {
    const int last = call.problem.grad_iters - 1;
    const void* logit_rows = products.right(2 * last + 1);
    const bool any_rows = call.plan.rows_gradient.hopper;
    if (call.plan.reconstruct_gradient.hopper && !any_rows)
      return call.reconstruct_backward({x, grad_y, logit_rows, logit_bias, value_rows, value_products, slots.sums});
    void* responsibilities = products.left(2 * last);
    const bool copies = any_rows && x.data != given.data;
    call.respond(copies ? given : x, logit_rows, logit_bias, responsibilities, slots.masses, copies ? x : Features{});
    if (any_rows) return call.rows_backward({grad_y, value_rows, responsibilities, value_products, slots.sums});
    return call.multiply(call.plan.m_step, grad_y, responsibilities, slots);
  }
};

}  // namespace ema
