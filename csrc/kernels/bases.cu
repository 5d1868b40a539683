// What happens to the bases between the passes over the features. A block works on 8 bases of one image, a warp on one.
//
// Bases are [C, K] for the caller, with K fastest, and rows [K, C] for the products, so both ways go through shared
// memory: 8 lines of Cp numbers, one a base. Lines are 4 numbers apart so that a warp meets every bank once.
#include "../device/math.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256;

constexpr int LINES = THREADS / 32, GAP = 4;

EMA_DEVICE float warp_sum(float value) {
  for (int other = 16; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
  return value;
}

EMA_DEVICE float warp_maximum(float value) {
  for (int other = 16; other > 0; other /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, other));
  return value;
}

// eps + value or max(eps, value); 1 where that is 0, which takes eps = 0: there 0 is divided.
EMA_DEVICE float divisor(float value, float eps, bool eps_max) {
  float shifted = eps_max ? (value < eps ? eps : value) : value + eps;
  return shifted == 0.f ? 1.f : shifted;
}

// The largest power of two up to |value|, within 2^-126 to 2^126; 1 for 0. An exact factor and divisor.
EMA_DEVICE float power_of_two(float value) {
  uint32_t exponent = __float_as_uint(value) & 0x7F800000u;
  exponent = min(max(exponent, 1u << 23), 253u << 23);
  return value == 0.f ? 1.f : __uint_as_float(exponent);
}

// Which 8 bases of which image.
struct Place {
  int image, first, base, padded, width, pitch;

  EMA_DEVICE Place(int num_bases, int channels) : padded(padded_bases(num_bases)), width(padded_channels(channels)), pitch(width + GAP) {
    image = blockIdx.x / (padded / LINES);
    first = blockIdx.x % (padded / LINES) * LINES;
    base = first + warp();
  }
  EMA_DEVICE int64_t row() const { return static_cast<int64_t>(image) * padded + base; }
};

// Calls body(base, channel, line) for the [C, K] of a block, neighbouring bases in neighbouring threads.
template <class Body>
EMA_DEVICE void for_bases(const Place& place, int channels, int num_bases, float* lines, Body body) {
  for (int i = threadIdx.x; i < channels * LINES; i += THREADS) {
    int channel = i / LINES, line = i % LINES;
    if (place.first + line < num_bases)
      body((static_cast<int64_t>(place.image) * channels + channel) * num_bases + place.first + line,
           lines[line * place.pitch + channel]);
  }
}

// My warp's line becomes factor * the sum of the slots; adds slot after slot. Columns beyond C become 0.
EMA_DEVICE void add_slots(const Place& place, const Partials& partials, int channels, float factor, float* line) {
  constexpr int AT_ONCE = 8;
  for (int start = lane(); start < place.width; start += 32 * AT_ONCE) {
    float total[AT_ONCE] = {};
    for (int slot = 0; slot < partials.sum_splits; ++slot) {
      const float* source = partials.sums + ((static_cast<int64_t>(place.image) * partials.sum_splits + slot) * place.padded +
                                             place.base) * place.width;
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i)
        if (start + 32 * i < channels) total[i] += source[start + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i)
      if (start + 32 * i < place.width) line[start + 32 * i] = factor * total[i];
  }
  __syncwarp();
}

EMA_DEVICE float add_masses(const Place& place, const Partials& partials) {
  float total = 0;
  for (int slot = lane(); slot < partials.mass_splits; slot += 32)
    total += partials.masses[(static_cast<int64_t>(place.image) * partials.mass_splits + slot) * place.padded + place.base];
  return warp_sum(total);
}

// My warp's line, times factor, as a row for the products; zeros for a base beyond K.
template <class Math>
EMA_DEVICE void write_row(const Place& place, int num_bases, const float* line, float factor, void* rows) {
  if (rows == nullptr) return;
  auto* row = static_cast<typename Math::Word*>(rows) + place.row() * place.width;
  for (int c = lane(); c < place.width; c += 32)
    row[c] = place.base < num_bases ? Math::round(factor * line[c]) : 0;
}

struct PackArgs {
  Bases bases;
  void* rows;
  float factor;
  int heads, channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS) pack_rows_kernel(const PackArgs args) {
  EMA_SHARED(shared);
  float* lines = reinterpret_cast<float*>(shared);
  const Place place(args.num_bases, args.channels);
  const float* source = args.bases.data + place.image / args.heads * args.bases.batch_stride +
                        place.image % args.heads * args.bases.head_stride;
  for (int i = threadIdx.x; i < place.width * LINES; i += THREADS) {
    int channel = i / LINES, line = i % LINES;
    bool inside = channel < args.channels && place.first + line < args.num_bases;
    lines[line * place.pitch + channel] =
        inside ? source[channel * args.bases.channel_stride + (place.first + line) * args.bases.base_stride] : 0.f;
  }
  __syncthreads();
  write_row<Math>(place, args.num_bases, lines + warp() * place.pitch, args.factor, args.rows);
}

struct AddArgs {
  Partials partials;
  float* total;
  float* mass;
  float factor;
  int channels, num_bases;
};

__global__ void __launch_bounds__(THREADS) add_partials_kernel(const AddArgs args) {
  EMA_SHARED(shared);
  float* lines = reinterpret_cast<float*>(shared);
  const Place place(args.num_bases, args.channels);
  if (args.total != nullptr) {
    add_slots(place, args.partials, args.channels, args.factor, lines + warp() * place.pitch);
    __syncthreads();
    for_bases(place, args.channels, args.num_bases, lines, [&](int64_t at, float value) { args.total[at] = value; });
  }
  if (args.mass != nullptr && place.base < args.num_bases) {
    float mass = add_masses(place, args.partials);
    if (lane() == 0) args.mass[static_cast<int64_t>(place.image) * args.num_bases + place.base] = mass;
  }
}

struct NormalizeArgs {
  Partials partials;
  Normalized out;
  float scale, eps;
  bool eps_max;
  int channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS) normalize_kernel(const NormalizeArgs args) {
  EMA_SHARED(shared);
  float* lines = reinterpret_cast<float*>(shared);
  const Place place(args.num_bases, args.channels);
  float* line = lines + warp() * place.pitch;
  if (place.base < args.num_bases) {
    add_slots(place, args.partials, args.channels, 1.f, line);
    const float mass = add_masses(place, args.partials), total = divisor(mass, args.eps, args.eps_max);
    float squares = 0;
    for (int c = lane(); c < place.width; c += 32) {
      line[c] /= total;
      squares += line[c] * line[c];
    }
    const float length = sqrtf(warp_sum(squares)), unit = divisor(length, args.eps, args.eps_max);
    for (int c = lane(); c < place.width; c += 32) line[c] /= unit;
    if (lane() == 0) {
      args.out.mass[static_cast<int64_t>(place.image) * args.num_bases + place.base] = mass;
      args.out.length[static_cast<int64_t>(place.image) * args.num_bases + place.base] = length;
    }
  }
  __syncthreads();
  for_bases(place, args.channels, args.num_bases, lines, [&](int64_t at, float value) { args.out.bases[at] = value; });
  write_row<Math>(place, args.num_bases, line, args.scale, args.out.logit_rows);
  write_row<Math>(place, args.num_bases, line, 1.f, args.out.value_rows);
}

struct GradientArgs {
  SumsGradient io;
  float eps;
  bool eps_max;
  int channels, num_bases;
};

template <class Math>
__global__ void __launch_bounds__(THREADS) normalize_gradient_kernel(const GradientArgs args) {
  EMA_SHARED(shared);
  float* lines = reinterpret_cast<float*>(shared);
  const SumsGradient& io = args.io;
  const Place place(args.num_bases, args.channels);
  float* m_lines = lines + LINES * place.pitch;
  float *line = lines + warp() * place.pitch, *m = m_lines + warp() * place.pitch;
  add_slots(place, io.partials, args.channels, io.factor, line);
  __syncthreads();
  if (io.extra != nullptr)
    for_bases(place, args.channels, args.num_bases, lines, [&](int64_t at, float& value) { value += io.extra[at]; });
  if (io.bases != nullptr)
    for_bases(place, args.channels, args.num_bases, m_lines, [&](int64_t at, float& value) { value = io.bases[at]; });
  __syncthreads();
  float power = 1, grad_mass = 0;
  if (place.base < args.num_bases) {
    const int64_t at = static_cast<int64_t>(place.image) * args.num_bases + place.base;
    if (io.bases != nullptr) {
      const float mass = io.mass[at], length = io.length[at], eps = args.eps;
      const float total = divisor(mass, eps, args.eps_max), unit = divisor(length, eps, args.eps_max);
      float along = 0;
      for (int c = lane(); c < args.channels; c += 32) along += m[c] * line[c];
      along = warp_sum(along);
      // a dead base (length 0) has no direction to lose
      const float radial = length > (args.eps_max ? eps : 0.f) ? along / length : 0.f;
      for (int c = lane(); c < args.channels; c += 32) line[c] = (line[c] / unit - m[c] * radial) / total;
      // after the L2 norm the mass matters only through eps: written so that nothing cancels
      if (!args.eps_max)
        grad_mass = -along * eps / unit / total;
      else if (length <= eps && mass > eps)
        grad_mass = -along / total;
    } else {
      grad_mass = io.mass[at];
    }
    float largest = 0;
    for (int c = lane(); c < args.channels; c += 32) largest = fmaxf(largest, fabsf(line[c]));
    power = power_of_two(warp_maximum(largest));
  }
  write_row<Math>(place, args.num_bases, line, 1.f / power, io.rows);
  if (lane() == 0) {
    io.powers[place.row()] = power;
    io.grad_mass[place.row()] = grad_mass;
  }
}

dim3 grid_of(const Problem& problem) { return dim3(problem.images() * (padded_bases(problem.num_bases) / LINES)); }

int lines_bytes(int channels) { return LINES * (padded_channels(channels) + GAP) * static_cast<int>(sizeof(float)); }

}  // namespace

cudaError_t pack_rows(const Problem& problem, const Bases& bases, int channels, float factor, void* rows,
                      cudaStream_t stream) {
  PackArgs args{bases, rows, factor, problem.heads, channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch(pack_rows_kernel<decltype(math)>, grid_of(problem), dim3(THREADS), lines_bytes(channels), stream, args);
  });
}

cudaError_t add_partials(const Problem& problem, int channels, const Partials& partials, float factor, float* total,
                         float* mass, cudaStream_t stream) {
  AddArgs args{partials, total, mass, factor, channels, problem.num_bases};
  return launch(add_partials_kernel, grid_of(problem), dim3(THREADS), lines_bytes(channels), stream, args);
}

cudaError_t normalize(const Problem& problem, const Partials& partials, const Normalized& out, cudaStream_t stream) {
  NormalizeArgs args{partials, out, problem.scale, problem.eps, problem.eps_max, problem.channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch(normalize_kernel<decltype(math)>, grid_of(problem), dim3(THREADS), lines_bytes(problem.channels), stream,
                  args);
  });
}

cudaError_t normalize_gradient(const Problem& problem, const SumsGradient& io, cudaStream_t stream) {
  GradientArgs args{io, problem.eps, problem.eps_max, problem.channels, problem.num_bases};
  return with_math(problem, [&](auto math) {
    return launch(normalize_gradient_kernel<decltype(math)>, grid_of(problem), dim3(THREADS),
                  2 * lines_bytes(problem.channels), stream, args);
  });
}

}  // namespace ema
