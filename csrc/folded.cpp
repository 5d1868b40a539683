#include "folded.h"

#include "backward_space.h"
#include "hopper/hopper.h"

namespace ema {
namespace {

// One slot of float32 for an image.
float* take_slots(const Problem& problem, Arena& arena) {
  return arena.take_floats(problem.images() * slot_words(problem, problem.channels, 1, false));
}

// Sums of x in `packed` as sums of f, in one slot.
Partials convolved(const Call& call, const Convolution& convolution, const PackedSums& packed, float* slots) {
  call.check("convolve_sums", convolve_sums(call.problem, convolution, packed, slots, call.stream));
  Partials partials;
  partials.sums = slots;
  partials.masses = packed.mass;
  partials.sum_splits = partials.mass_splits = 1;
  return partials;
}

// From the partial sums of an iteration to the bases of f, and to those of x for the next one.
void end_iteration(const Call& call, hopper::EndIteration end) {
  const Problem& problem = call.problem;
  if (!call.plan.end_iteration || end.partials.sum_splits > hopper::END_ITERATION_SPLITS) {
    call.check("pack_partials", pack_partials(problem, end.partials, end.packed, call.stream));
    end.partials.sums = nullptr;
  }
  if (call.plan.end_iteration) {
    call.check("end_iteration", hopper::end_iteration(problem, end, call.stream));
    return;
  }
  const Partials sums = convolved(call, end.convolution, end.packed, end.convolved_sums);
  call.check("normalize", normalize(problem, sums, end.next, call.stream));
  if (end.logit_rows == nullptr) return;
  call.check("convolve_bases", convolve_bases(problem, end.convolution, end.next.value_rows, problem.scale,
                                              end.logit_rows, end.logit_bias, call.stream));
}

struct FoldedBackwardSpace {
  BackwardSpace backward;
  void* rows;  // of bases or sums of f, or of sums of x
  float *powers, *packed_mass;
  float* logit_bias;  // [grad_iters, G, K]
  float* convolved_sums;

  FoldedBackwardSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : backward(problem, plan, arena),
        rows(arena.take(row_bytes(problem, problem.channels))),
        powers(arena.take_floats(per_base(problem))),
        packed_mass(arena.take_floats(per_base(problem))),
        logit_bias(arena.take_floats(per_base(problem) * problem.grad_iters)),
        convolved_sums(take_slots(problem, arena)) {}
};

}  // namespace

FoldedSpace::FoldedSpace(const Problem& problem, const Plan& plan, Arena& arena)
    : iteration(problem, plan, true, arena),
      rows(arena.take(row_bytes(problem, problem.channels))),
      powers(arena.take_floats(per_base(problem))),
      packed_mass(arena.take_floats(per_base(problem))),
      logit_bias(arena.take_floats(per_base(problem))),
      convolved_sums(take_slots(problem, arena)) {}

void iterate_folded(const Call& call, const FoldedLoop& io, const FoldedSpace& space) {
  const Problem& problem = call.problem;
  const IterationSpace& iteration = space.iteration;
  const int64_t columns = int64_t{problem.images()} * problem.num_bases, matrices = columns * problem.channels;
  const Features x = call.aligned(io.x, iteration.x);
  call.look_at(io.weight, iteration);
  call.pack(io.initial, problem.channels, 1, space.rows, io.path);
  // logits f M = x (W^T M) + b M: the loop reads x
  call.check("convolve_bases", convolve_bases(problem, io.convolution, space.rows, problem.scale, iteration.logit_rows,
                                              space.logit_bias, call.stream));
  for (int t = 0; t < problem.num_iters; ++t) {
    const bool is_last = t + 1 == problem.num_iters;
    hopper::EndIteration end;
    end.partials = call.iterate(x, io.weight, space.logit_bias, is_last, iteration);
    end.convolution = io.convolution;
    end.packed = {space.rows, space.powers, space.packed_mass, io.sums == nullptr ? nullptr : io.sums + t * matrices};
    end.convolved_sums = space.convolved_sums;
    end.next.mass = io.mass + (io.path == nullptr ? 0 : t * columns);
    end.next.length = io.length + (io.path == nullptr ? 0 : t * columns);
    end.next.bases = io.path == nullptr || is_last ? io.bases : io.path + (t + 1) * matrices;
    end.next.value_rows = space.rows;
    end.logit_rows = is_last ? nullptr : iteration.logit_rows;
    end.logit_bias = space.logit_bias;
    end_iteration(call, end);
  }
}

void em_folded_forward(const Call& call, const FoldedForward& io, Arena workspace) {
  const FoldedSpace space(call.problem, call.plan, workspace);
  iterate_folded(call, io.loop, space);
  call.check("rank_k_products",
             rank_k_products(call.problem, call.plan.reconstruction, 1, space.iteration.responsibilities, space.rows,
                             1 / RESPONSIBILITY_SCALE, io.y, false, call.stream));
}

int64_t em_folded_forward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  FoldedSpace(problem, plan, arena);
  return arena.used();
}

void em_folded_backward(const Call& call, const FoldedBackward& io, Arena workspace) {
  const Problem& problem = call.problem;
  const Plan& plan = call.plan;
  const FoldedBackwardSpace space(problem, plan, workspace);
  const BackwardSpace& backward = space.backward;
  const Products& products = backward.products;
  const int64_t columns = int64_t{problem.images()} * problem.num_bases, matrices = columns * problem.channels;
  const Features x = call.aligned_on_the_way(io.x, backward.x);
  const int pairs = problem.grad_iters, last = problem.num_iters - 1, stop = problem.num_iters - pairs;
  auto logit_bias = [&](int pair) { return space.logit_bias + pair * columns; };
  for (int i = 0; i < pairs; ++i) {
    call.pack(io.path + (stop + i) * matrices, problem.channels, 1, space.rows);
    call.check("convolve_bases", convolve_bases(problem, io.convolution, space.rows, problem.scale,
                                                products.right(2 * i + 1), logit_bias(i), call.stream));
  }
  call.pack(io.bases, problem.channels, 1, backward.value_rows);

  const Features grad_y = call.aligned(io.grad_y, backward.grad_y);
  SumsGradient sums;
  sums.partials = backward.grad_bases(call, io.x, x, grad_y, logit_bias(pairs - 1));
  sums.extra = io.grad_bases;
  sums.bases = io.bases;
  sums.powers = backward.powers;
  sums.grad_mass = backward.grad_mass;
  for (int t = last; t >= stop; --t) {
    const int pair = t - stop;
    sums.mass = io.mass + t * columns;
    sums.length = io.length + t * columns;
    sums.rows = space.rows;
    sums.total = io.grad_sums + pair * matrices;
    call.check("normalize_gradient", normalize_gradient(problem, sums, call.stream));
    sums.rows = products.right(2 * pair);
    call.check("convolve_gradient", convolve_gradient(problem, io.convolution, space.rows, sums.powers, sums.rows,
                                                      sums.grad_mass, call.stream));
    EStepGradient e_step = products.iteration(pair, x, io.weight, sums);
    e_step.logit_bias = logit_bias(pair);
    if (t == last) {
      e_step.grad_y = grad_y;
      e_step.value_rows = backward.value_rows;
      e_step.value_products = backward.value_products;
    }
    // the gradient of W needs the M-step of every iteration
    Partials partials = call.backward(t == last ? plan.last_gradient : plan.gradient, e_step, true, backward.slots);
    partials.mass_factor = problem.scale;
    const PackedSums packed{space.rows, space.powers, space.packed_mass, io.logit_sums + pair * matrices,
                            io.logit_mass + pair * columns};
    call.check("pack_partials", pack_partials(problem, partials, packed, call.stream));
    if (t == stop && io.grad_initial == nullptr) break;
    sums.partials = convolved(call, io.convolution, packed, space.convolved_sums);
    sums.extra = nullptr;
    sums.bases = io.path + t * matrices;
  }
  if (io.grad_initial != nullptr)
    call.check("add_partials",
               add_partials(problem, problem.channels, sums.partials, io.grad_initial, nullptr, call.stream));
  call.check("rank_k_products", rank_k_products(problem, plan.grad_x, 2 * pairs, products.left(0), products.right(0), 1,
                                                io.grad_x, true, call.stream));
}

int64_t em_folded_backward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  FoldedBackwardSpace(problem, plan, arena);
  return arena.used();
}

}  // namespace ema
