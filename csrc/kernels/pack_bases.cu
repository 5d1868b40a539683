// Bases and sums of any origin as rows for the products, and partial sums added.
#include "between_iterations.h"

namespace ema {
namespace {

struct PackArgs {
  Bases bases;
  void* rows;
  float* dense;
  float factor;
  int lines, heads, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(LINE_THREADS, 1) pack_rows_kernel(const PackArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  const float* source = args.bases.data + place.image / args.heads * args.bases.batch_stride +
                        place.image % args.heads * args.bases.head_stride;
  for (int i = threadIdx.x; i < place.width * place.lines; i += LINE_THREADS) {
    int channel = i / place.lines, line = i % place.lines, base = place.first_base + line;
    bool inside = channel < args.channels && base < args.num_bases;
    memory[line * place.pitch + channel] =
        inside ? source[channel * args.bases.channel_stride + base * args.bases.base_stride] : 0.f;
  }
  __syncthreads();
  write_row<Math>(place, args.num_bases, memory, args.factor, args.rows);
  if (args.dense != nullptr)
    for_bases(place, args.channels, args.num_bases, memory, [&](int64_t at, float value) { args.dense[at] = value; });
}

struct AddArgs {
  Partials partials;
  float* total;
  float* mass;
  int lines, channels, num_bases;
};

__global__ void __launch_bounds__(LINE_THREADS, 1) add_partials_kernel(const AddArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  if (args.total != nullptr) {
    add_slots(place, args.partials, args.channels, memory);
    for_bases(place, args.channels, args.num_bases, memory, [&](int64_t at, float value) { args.total[at] = value; });
  }
  if (args.mass != nullptr) {
    float mass = add_masses(place, args.partials);
    if (place.first == 0 && place.base < args.num_bases)
      args.mass[static_cast<int64_t>(place.image) * args.num_bases + place.base] = mass;
  }
}

struct PackPartialsArgs {
  Partials partials;
  PackedSums out;
  int lines, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(LINE_THREADS, 1) pack_partials_kernel(const PackPartialsArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  pack_sums<Math>(Place(shared, args.lines, args.num_bases, args.channels), args.partials, args.channels,
                  args.num_bases, args.out);
}

}  // namespace

cudaError_t pack_rows(const Problem& problem, const Bases& bases, int channels, float factor, void* rows, float* dense,
                      cudaStream_t stream) {
  PackArgs args{bases, rows, dense, factor, bases_of_block(problem), problem.heads, channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch_bases(pack_rows_kernel<decltype(math)>, problem, channels, 1, args, stream);
  });
}

cudaError_t add_partials(const Problem& problem, int channels, const Partials& partials, float* total, float* mass,
                         cudaStream_t stream) {
  AddArgs args{partials, total, mass, bases_of_block(problem), channels, problem.num_bases};
  return launch_bases(add_partials_kernel, problem, channels, 1, args, stream);
}

cudaError_t pack_partials(const Problem& problem, const Partials& partials, const PackedSums& out,
                          cudaStream_t stream) {
  PackPartialsArgs args{partials, out, bases_of_block(problem), problem.channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch_bases(pack_partials_kernel<decltype(math)>, problem, problem.channels, 1, args, stream);
  });
}

}  // namespace ema
