// What happens to the bases between the passes over the features. A block works on some bases of one image.
//
// Bases are [C, K] for the caller, with K fastest, and rows [K, C] for the products, so both ways go through shared
// memory: a line of Cp numbers for each base. Lines are 4 numbers apart so that a warp meets every bank once.
#include "../device/chunks.h"
#include "../device/divisor.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, GAP = 4;

// Bases of a block: 8 where there are many images, so that [C, K] is written in whole sectors; fewer, with more warps
// each, where the partial sums of a few images would keep only a few multiprocessors busy.
int bases_of_block(const Problem& problem) {
  constexpr int enough_blocks = 256;
  int lines = WARPS;
  while (lines > 1 && problem.images() * (padded_bases(problem.num_bases) / lines) < enough_blocks) lines /= 2;
  return lines;
}

// Which bases of which image a block works on, and the share of my thread in one of them: the channels from `first` on
// in steps of `step`.
struct Place {
  float *values, *memory;  // shared: a number of every warp, and behind them the lines
  int lines, image, first_base, base, padded, width, pitch, first, step;

  EMA_DEVICE Place(unsigned char* shared, int lines, int num_bases, int channels)
      : values(reinterpret_cast<float*>(shared)),
        memory(values + WARPS),
        lines(lines),
        padded(padded_bases(num_bases)),
        width(padded_channels(channels)),
        pitch(width + GAP) {
    const int across = WARPS / lines;  // warps of a base
    image = blockIdx.x / (padded / lines);
    first_base = blockIdx.x % (padded / lines) * lines;
    base = first_base + warp() / across;
    first = warp() % across * 32 + lane();
    step = across * 32;
  }
  EMA_DEVICE int64_t row() const { return static_cast<int64_t>(image) * padded + base; }
  EMA_DEVICE float* line(float* memory) const { return memory + (base - first_base) * pitch; }
};

// A value of every thread combined over all threads of its base, in a fixed order. All threads of the block take part.
template <class Combine>
EMA_DEVICE float combine_line(const Place& place, float value, Combine combine) {
  for (int other = 16; other > 0; other /= 2) value = combine(value, __shfl_xor_sync(~0u, value, other));
  __syncthreads();
  if (lane() == 0) place.values[warp()] = value;
  __syncthreads();
  const int across = WARPS / place.lines, mine = warp() / across * across;
  value = place.values[mine];
  for (int i = 1; i < across; ++i) value = combine(value, place.values[mine + i]);
  return value;
}

EMA_DEVICE float line_sum(const Place& place, float value) {
  return combine_line(place, value, [](float a, float b) { return a + b; });
}

// Calls body(index, number) for the [C, K] of a block, neighbouring bases in neighbouring threads.
template <class Body>
EMA_DEVICE void for_bases(const Place& place, int channels, int num_bases, float* memory, Body body) {
  for (int i = threadIdx.x; i < channels * place.lines; i += THREADS) {
    int channel = i / place.lines, line = i % place.lines;
    if (place.first_base + line < num_bases)
      body((static_cast<int64_t>(place.image) * channels + channel) * num_bases + place.first_base + line,
           memory[line * place.pitch + channel]);
  }
}

// My base's line becomes the sum of the slots; adds slot after slot. Columns beyond C become 0.
EMA_DEVICE void add_slots(const Place& place, const Partials& partials, int channels, float* memory) {
  constexpr int AT_ONCE = 4;
  float* line = place.line(memory);
  const float factor = partials.sum_factor * weight_power(partials.weight_maxima, place.image);
  const int64_t slot_size = static_cast<int64_t>(place.padded) * place.width;
  const float* source = partials.sums + (static_cast<int64_t>(place.image) * partials.sum_splits) * slot_size +
                        static_cast<int64_t>(place.base) * place.width;
  for (int start = place.first; start < place.width; start += place.step * AT_ONCE) {
    float total[AT_ONCE] = {};
#pragma unroll 4
    for (int slot = 0; slot < partials.sum_splits; ++slot)
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        int channel = start + place.step * i;
        if (channel < channels) total[i] += source[slot * slot_size + channel];
      }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i)
      if (start + place.step * i < place.width) line[start + place.step * i] = factor * total[i];
  }
}

EMA_DEVICE float add_masses(const Place& place, const Partials& partials) {
  const float* source = partials.masses + static_cast<int64_t>(place.image) * partials.mass_splits * place.padded;
  float total = 0;
  for (int slot = place.first; slot < partials.mass_splits; slot += place.step)
    total += source[static_cast<int64_t>(slot) * place.padded + place.base];
  return partials.mass_factor * weight_power(partials.weight_maxima, place.image) * line_sum(place, total);
}

// My base's line, times factor, as a row for the products; zeros for a base beyond K.
template <class Math>
EMA_DEVICE void write_row(const Place& place, int num_bases, float* memory, float factor, void* rows) {
  if (rows == nullptr) return;
  const float* line = place.line(memory);
  auto* row = static_cast<typename Math::Word*>(rows) + place.row() * place.width;
  for (int c = place.first; c < place.width; c += place.step)
    row[c] = place.base < num_bases ? Math::round(factor * line[c]) : 0;
}

// The same for a row divided by a power of two near its largest number; returns the power.
template <class Math>
EMA_DEVICE float write_divided_row(const Place& place, int channels, int num_bases, float* memory, void* rows) {
  const float* line = place.line(memory);
  float largest = 0;
  for (int c = place.first; c < channels; c += place.step) largest = fmaxf(largest, fabsf(line[c]));
  const float power = power_of_two(combine_line(place, largest, [](float a, float b) { return fmaxf(a, b); }));
  write_row<Math>(place, num_bases, memory, 1.f / power, rows);
  return power;
}

struct PackArgs {
  Bases bases;
  void* rows;
  float* dense;
  float factor;
  int lines, heads, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1) pack_rows_kernel(const PackArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  const float* source = args.bases.data + place.image / args.heads * args.bases.batch_stride +
                        place.image % args.heads * args.bases.head_stride;
  for (int i = threadIdx.x; i < place.width * place.lines; i += THREADS) {
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

__global__ void __launch_bounds__(THREADS, 1) add_partials_kernel(const AddArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  if (args.total != nullptr) {
    add_slots(place, args.partials, args.channels, memory);
    __syncthreads();
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
__global__ void __launch_bounds__(THREADS, 1) pack_partials_kernel(const PackPartialsArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  add_slots(place, args.partials, args.channels, place.memory);
  const float mass = add_masses(place, args.partials);
  const float power =
      write_divided_row<Math>(place, args.channels, args.num_bases, place.memory, args.out.rows);
  if (place.first == 0) {
    args.out.powers[place.row()] = power;
    args.out.mass[place.row()] = mass;
  }
}

struct NormalizeArgs {
  Partials partials;
  Normalized out;
  float scale, eps;
  bool eps_max;
  int lines, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1) normalize_kernel(const NormalizeArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  float* line = place.line(memory);
  add_slots(place, args.partials, args.channels, memory);
  const float mass = add_masses(place, args.partials), total = divisor(mass, args.eps, args.eps_max);
  float squares = 0;
  for (int c = place.first; c < place.width; c += place.step) {
    line[c] /= total;
    squares += line[c] * line[c];
  }
  const float length = sqrtf(line_sum(place, squares)), unit = divisor(length, args.eps, args.eps_max);
  for (int c = place.first; c < place.width; c += place.step) line[c] /= unit;
  if (place.first == 0 && place.base < args.num_bases) {
    args.out.mass[static_cast<int64_t>(place.image) * args.num_bases + place.base] = mass;
    args.out.length[static_cast<int64_t>(place.image) * args.num_bases + place.base] = length;
  }
  __syncthreads();
  for_bases(place, args.channels, args.num_bases, memory, [&](int64_t at, float value) { args.out.bases[at] = value; });
  write_row<Math>(place, args.num_bases, memory, args.scale, args.out.logit_rows);
  write_row<Math>(place, args.num_bases, memory, 1.f, args.out.value_rows);
}

struct GradientArgs {
  SumsGradient io;
  float eps;
  bool eps_max;
  int lines, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1) normalize_gradient_kernel(const GradientArgs args) {
  EMA_SHARED(shared);
  wait_for_predecessors();
  const SumsGradient& io = args.io;
  const Place place(shared, args.lines, args.num_bases, args.channels);
  float* memory = place.memory;
  float* m_memory = memory + place.lines * place.pitch;
  float *line = place.line(memory), *m = place.line(m_memory);
  add_slots(place, io.partials, args.channels, memory);
  __syncthreads();
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
}

// Launch of a kernel of this file, with shared memory for `arrays` lines of `channels` for each base of a block.
template <class Args>
cudaError_t launch_bases(void (*kernel)(Args), const Problem& problem, int channels, int arrays, const Args& args,
                         cudaStream_t stream) {
  dim3 grid(problem.images() * (padded_bases(problem.num_bases) / args.lines));
  int numbers = WARPS + arrays * args.lines * (padded_channels(channels) + GAP);
  return launch(kernel, grid, dim3(THREADS), numbers * static_cast<int>(sizeof(float)), stream, args);
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
