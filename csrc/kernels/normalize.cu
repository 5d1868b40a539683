// The end of the M-step, sums to bases, and its gradient.
#include "between_iterations.h"

namespace ema {
namespace {

struct NormalizeArgs {
  Partials partials;
  Normalized out;
  float scale, eps;
  bool eps_max;
  int lines, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(LINE_THREADS, 1) normalize_kernel(const NormalizeArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  normalize_sums<Math>(Place(shared, args.lines, args.num_bases, args.channels), args.partials, args.channels,
                       args.num_bases, {args.scale, args.eps, args.eps_max}, args.out);
}

struct GradientArgs {
  SumsGradient io;
  float eps;
  bool eps_max;
  int lines, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(LINE_THREADS, 1) normalize_gradient_kernel(const GradientArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const SumsGradient& io = args.io;
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  float* m_memory = memory + place.lines * place.pitch;
  float *line = place.line(memory), *m = place.line(m_memory);
  add_slots(place, io.partials, args.channels, memory);
  if (io.extra != nullptr)
    for_bases(place, args.channels, args.num_bases, memory, [&](int64_t at, float& value) { value += io.extra[at]; });
  if (io.bases != nullptr)
    for_bases(place, args.channels, args.num_bases, m_memory, [&](int64_t at, float& value) { value = io.bases[at]; });
  __syncthreads();
  const bool exists = place.base < args.num_bases;
  const int64_t at = static_cast<int64_t>(place.image) * args.num_bases + place.base;
  float grad_mass = exists && io.bases == nullptr ? io.mass[at] : 0.f;
  if (io.bases != nullptr) {
    const float mass = exists ? io.mass[at] : 1.f, length = exists ? io.length[at] : 1.f, eps = args.eps;
    const float total = divisor(mass, eps, args.eps_max), unit = divisor(length, eps, args.eps_max);
    float along = 0;
    if (exists)
      for (int c = place.first; c < args.channels; c += place.step) along += m[c] * line[c];
    along = line_sum(place, along);
    // a dead base (length 0) has no direction to lose
    const float radial = length > (args.eps_max ? eps : 0.f) ? along / length : 0.f;
    if (exists)
      for (int c = place.first; c < args.channels; c += place.step) line[c] = (line[c] / unit - m[c] * radial) / total;
    // after the L2 norm the mass matters only through eps: written so that nothing cancels
    if (!args.eps_max)
      grad_mass = -along * eps / unit / total;
    else if (length <= eps && mass > eps)
      grad_mass = -along / total;
  }
  const float power = write_divided_row<Math>(place, args.channels, args.num_bases, memory, io.rows);
  if (place.first == 0) {
    io.powers[place.row()] = exists ? power : 1.f;
    io.grad_mass[place.row()] = exists ? grad_mass : 0.f;
  }
  if (io.total == nullptr) return;
  __syncthreads();
  for_bases(place, args.channels, args.num_bases, memory, [&](int64_t at, float value) { io.total[at] = value; });
}

}  // namespace

cudaError_t normalize(const Problem& problem, const Partials& partials, const Normalized& out, cudaStream_t stream) {
  NormalizeArgs args{partials,        out, problem.scale, problem.eps, problem.eps_max, bases_of_block(problem),
                     problem.channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch_bases(normalize_kernel<decltype(math)>, problem, problem.channels, 1, args, stream);
  });
}

cudaError_t normalize_gradient(const Problem& problem, const SumsGradient& io, cudaStream_t stream) {
  GradientArgs args{io, problem.eps, problem.eps_max, bases_of_block(problem), problem.channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch_bases(normalize_gradient_kernel<decltype(math)>, problem, problem.channels, 2, args, stream);
  });
}

}  // namespace ema
