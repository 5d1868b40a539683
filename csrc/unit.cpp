#include "unit.h"

#include "folded.h"

namespace ema {
namespace {

struct UnitSpace {
  FoldedSpace folded;
  float *mass, *length;

  UnitSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : folded(problem, plan, arena),
        mass(arena.take_floats(per_base(problem))),
        length(arena.take_floats(per_base(problem))) {}
};

}  // namespace

void em_unit(const Call& call, const Unit& io, Arena workspace) {
  const UnitSpace space(call.problem, call.plan, workspace);
  FoldedLoop loop{io.x, io.weight, io.initial, io.first};
  loop.bases = io.bases;
  loop.mass = space.mass;
  loop.length = space.length;
  iterate_folded(call, loop, space.folded);
  const UnitTail tail{io.x, io.y, space.folded.iteration.responsibilities, space.folded.rows, io.second};
  call.check("unit_tail", unit_tail(call.problem, call.plan.unit_tail, tail, call.stream));
}

int64_t em_unit_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  UnitSpace(problem, plan, arena);
  return arena.used();
}

}  // namespace ema
