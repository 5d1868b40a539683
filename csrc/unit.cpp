#include "unit.h"

namespace ema {
namespace {

// `rows` are those of the sums of x before the first convolution is applied to them, and of the bases after it.
struct UnitSpace {
  IterationSpace iteration;
  void* rows;
  float *powers, *packed_mass, *logit_bias, *mass, *length;

  UnitSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : iteration(problem, plan, true, arena),
        rows(arena.take(row_bytes(problem, problem.channels))),
        powers(arena.take_floats(per_base(problem))),
        packed_mass(arena.take_floats(per_base(problem))),
        logit_bias(arena.take_floats(per_base(problem))),
        mass(arena.take_floats(per_base(problem))),
        length(arena.take_floats(per_base(problem))) {}
};

// The bases M of f = conv1(x) = x W^T + b from the sums of x: f^T Z = W x^T Z + b mass. They become rows.
void end_iteration(const Call& call, const Unit& io, const Partials& partials, const UnitSpace& space) {
  const PackedSums packed{space.rows, space.powers, space.packed_mass};
  call.check("pack_partials", pack_partials(call.problem, partials, packed, call.stream));
  // all slots have been read: the first is free
  float* sums = space.iteration.slots.sums;
  call.check("convolve_sums", convolve_sums(call.problem, io.first, packed, sums, call.stream));
  Partials convolved;
  convolved.sums = sums;
  convolved.masses = packed.mass;
  convolved.sum_splits = convolved.mass_splits = 1;
  Normalized next;
  next.mass = space.mass;
  next.length = space.length;
  next.bases = io.bases;
  next.value_rows = space.rows;
  call.check("normalize", normalize(call.problem, convolved, next, call.stream));
}

}  // namespace

void em_unit(const Call& call, const Unit& io, Arena workspace) {
  const Problem& problem = call.problem;
  const UnitSpace space(problem, call.plan, workspace);
  const IterationSpace& iteration = space.iteration;
  call.look_at(io.weight, iteration);
  call.pack(io.initial, problem.channels, 1, space.rows);
  for (int t = 0; t < problem.num_iters; ++t) {
    // logits f M = x (W^T M) + b M: the loop reads x
    call.check("convolve_bases", convolve_bases(problem, io.first, space.rows, problem.scale, iteration.logit_rows,
                                                space.logit_bias, call.stream));
    const bool is_last = t + 1 == problem.num_iters;
    end_iteration(call, io, call.iterate(io.x, io.weight, space.logit_bias, is_last, iteration), space);
  }
  const UnitTail tail{io.x, io.y, iteration.responsibilities, space.rows, io.second};
  call.check("unit_tail", unit_tail(problem, call.plan.unit_tail, tail, call.stream));
}

int64_t em_unit_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  UnitSpace(problem, plan, arena);
  return arena.used();
}

}  // namespace ema
