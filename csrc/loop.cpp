#include "loop.h"

#include "backward_space.h"
#include "hopper/em_loop.h"

namespace ema {
namespace {

struct ForwardSpace {
  IterationSpace iteration;
  void* value_rows;

  ForwardSpace(const Problem& problem, const Plan& plan, Arena& arena)
      : iteration(problem, plan, true, arena), value_rows(arena.take(row_bytes(problem, problem.channels))) {}
};

// The workspace of the loop in one launch.
struct LoopSpace {
  hopper::EmLoop loop;
  void* rows;
  float* maxima = nullptr;

  LoopSpace(const Problem& problem, const LoopPlan& plan, Arena& arena)
      : rows(arena.take(row_bytes(problem, problem.channels))) {
    const int64_t clusters = int64_t{problem.images()} * plan.clusters, lines = clusters * padded_bases(problem.num_bases);
    const int width = hopper::loop_width(problem.channels), pairs = (plan.positions + TILE - 1) / TILE;
    loop.logit_rows = rows;
    loop.responsibilities = arena.take(clusters * plan.cluster * pairs * TILE * CHUNK_BYTES);
    loop.rows = arena.take(lines * width * element_size(problem.dtype));
    if (problem.weighted && problem.dtype == Dtype::float16)
      loop.weight_maxima = maxima = arena.take_floats(int64_t{problem.images()} * WEIGHT_PARTS);
    if (plan.clusters == 1) return;
    loop.sums = arena.take_floats(2 * lines * width);
    loop.masses = arena.take_floats(2 * lines);
    loop.counts = static_cast<unsigned*>(arena.take(int64_t{4} * problem.images() * plan.cluster));
  }
};

// What only a gradient would read.
void keep_in(Arena& arena, const Problem& problem, Forward& io) {
  const int64_t columns = int64_t{problem.num_iters} * problem.images() * problem.num_bases;
  io.path = arena.take_floats(columns * problem.channels);
  io.mass = arena.take_floats(columns);
  io.length = arena.take_floats(columns);
}

void take_forward(Arena& arena, const Problem& problem, const Plan& plan) {
  if (plan.loop.one_launch)
    LoopSpace(problem, plan.loop, arena);
  else
    ForwardSpace(problem, plan, arena);
}

void em_loop(const Call& call, const Forward& io, Arena workspace) {
  const Problem& problem = call.problem;
  LoopSpace space(problem, call.plan.loop, workspace);
  if (space.maxima != nullptr)
    call.check("weight_maxima", weight_maxima(problem, io.weight, space.maxima, call.stream));
  call.pack(io.initial, problem.channels, problem.scale, space.rows, io.path);
  hopper::EmLoop loop = space.loop;
  loop.x = io.x;
  loop.y = io.y;
  loop.weight = io.weight;
  loop.path = io.path;
  loop.bases = io.bases;
  loop.mass = io.mass;
  loop.length = io.length;
  call.check("em_loop", hopper::em_loop(problem, call.plan.loop, loop, call.stream));
}

}  // namespace

void em_forward(const Call& call, const Forward& io, Arena workspace) {
  if (call.plan.loop.one_launch) return em_loop(call, io, workspace);
  const Problem& problem = call.problem;
  const ForwardSpace space(problem, call.plan, workspace);
  const int64_t columns = int64_t{problem.images()} * problem.num_bases, matrices = columns * problem.channels;
  const Features x = call.aligned(io.x, space.iteration.x);
  call.look_at(io.weight, space.iteration);
  call.pack(io.initial, problem.channels, problem.scale, space.iteration.logit_rows, io.path);
  for (int t = 0; t < problem.num_iters; ++t) {
    const bool is_last = t + 1 == problem.num_iters;
    const Partials partials = call.iterate(x, io.weight, nullptr, is_last, space.iteration);
    Normalized next;
    next.mass = io.mass + t * columns;
    next.length = io.length + t * columns;
    next.bases = is_last ? io.bases : io.path + (t + 1) * matrices;
    (is_last ? next.value_rows : next.logit_rows) = is_last ? space.value_rows : space.iteration.logit_rows;
    call.check("normalize", normalize(problem, partials, next, call.stream));
  }
  call.check("rank_k_products", rank_k_products(problem, call.plan.reconstruction, 1, space.iteration.responsibilities,
                                                space.value_rows, 1 / RESPONSIBILITY_SCALE, io.y, false, call.stream));
}

int64_t em_forward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  take_forward(arena, problem, plan);
  return arena.used();
}

void em_attend(const Call& call, const Forward& io, Arena workspace) {
  Forward kept = io;
  keep_in(workspace, call.problem, kept);
  em_forward(call, kept, workspace);
}

int64_t em_attend_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  Forward kept;
  keep_in(arena, problem, kept);
  take_forward(arena, problem, plan);
  return arena.used();
}

void em_backward(const Call& call, const Backward& io, Arena workspace) {
  const Problem& problem = call.problem;
  const Plan& plan = call.plan;
  const BackwardSpace space(problem, plan, workspace);
  const Products& products = space.products;
  const int64_t columns = int64_t{problem.images()} * problem.num_bases, matrices = columns * problem.channels;
  const Features x = call.aligned_on_the_way(io.x, space.x);
  const int pairs = problem.grad_iters, last = problem.num_iters - 1, stop = problem.num_iters - pairs;
  for (int i = 0; i < pairs; ++i)
    call.pack(io.path + (stop + i) * matrices, problem.channels, problem.scale, products.right(2 * i + 1));
  call.pack(io.bases, problem.channels, 1, space.value_rows);

  const Features grad_y = call.aligned(io.grad_y, space.grad_y);
  SumsGradient sums;
  sums.partials = space.grad_bases(call, io.x, x, grad_y, nullptr);
  sums.extra = io.grad_bases;
  sums.bases = io.bases;
  sums.powers = space.powers;
  sums.grad_mass = space.grad_mass;
  for (int t = last; t >= stop; --t) {
    const int pair = t - stop;
    sums.mass = io.mass + t * columns;
    sums.length = io.length + t * columns;
    sums.rows = products.right(2 * pair);
    call.check("normalize_gradient", normalize_gradient(problem, sums, call.stream));
    EStepGradient e_step = products.iteration(pair, x, io.weight, sums);
    if (t == last) {
      e_step.grad_y = grad_y;
      e_step.value_rows = space.value_rows;
      e_step.value_products = space.value_products;
    }
    const bool m_step = t > stop || io.grad_initial != nullptr;
    const EStepPlan& e_step_plan = t == last ? plan.last_gradient : m_step ? plan.gradient : plan.first_gradient;
    sums.partials = call.backward(e_step_plan, e_step, m_step, space.slots);
    sums.extra = nullptr;
    sums.bases = io.path + t * matrices;
  }
  if (io.grad_initial != nullptr)
    call.check("add_partials",
               add_partials(problem, problem.channels, sums.partials, io.grad_initial, nullptr, call.stream));
  call.check("rank_k_products", rank_k_products(problem, plan.grad_x, 2 * pairs, products.left(0), products.right(0), 1,
                                                io.grad_x, true, call.stream));
}

int64_t em_backward_bytes(const Problem& problem, const Plan& plan) {
  Arena arena;
  BackwardSpace(problem, plan, arena);
  return arena.used();
}

}  // namespace ema
