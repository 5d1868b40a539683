// What happens to bases between two passes over the features, as functions of a block: launched one by one by the files
// beside this one, and one after the other by hopper/end_iteration.cu.
#pragma once
#include "../device/divisor.h"
#include "../device/pipeline.h"
#include "add_slots.h"

namespace ema {

// The bases of a block from partial sums, as pack_partials leaves them.
template <class Math>
EMA_DEVICE void pack_sums(const Place& place, const Partials& partials, int channels, int num_bases,
                          const PackedSums& out) {
  add_slots(place, partials, channels, place.memory);
  const float mass = add_masses(place, partials);
  const float power = write_divided_row<Math>(place, channels, num_bases, place.memory, out.rows);
  if (place.first == 0) {
    out.powers[place.row()] = power;
    out.mass[place.row()] = mass;
    if (out.total_mass != nullptr && place.base < num_bases)
      out.total_mass[static_cast<int64_t>(place.image) * num_bases + place.base] = mass;
  }
  if (out.total == nullptr) return;
  __syncthreads();
  for_bases(place, channels, num_bases, place.memory, [&](int64_t at, float value) { out.total[at] = value; });
}

struct Division {
  float scale, eps;
  bool eps_max;
};

// The bases of a block from partial sums, as normalize leaves them.
template <class Math>
EMA_DEVICE void normalize_sums(const Place& place, const Partials& partials, int channels, int num_bases,
                               const Division& by, const Normalized& out) {
  float* memory = place.memory;
  float* line = place.line(memory);
  add_slots(place, partials, channels, memory);
  const float mass = add_masses(place, partials), total = divisor(mass, by.eps, by.eps_max);
  float squares = 0;
  for (int c = place.first; c < place.width; c += place.step) {
    line[c] /= total;
    squares += line[c] * line[c];
  }
  const float length = sqrtf(line_sum(place, squares)), unit = divisor(length, by.eps, by.eps_max);
  for (int c = place.first; c < place.width; c += place.step) line[c] /= unit;
  if (place.first == 0 && place.base < num_bases) {
    out.mass[static_cast<int64_t>(place.image) * num_bases + place.base] = mass;
    out.length[static_cast<int64_t>(place.image) * num_bases + place.base] = length;
  }
  __syncthreads();
  for_bases(place, channels, num_bases, memory, [&](int64_t at, float value) { out.bases[at] = value; });
  write_row<Math>(place, num_bases, memory, by.scale, out.logit_rows);
  write_row<Math>(place, num_bases, memory, 1.f, out.value_rows);
}

// A tile of BASES by CHANNELS is the work of a block of 4 x 2 warps, each 16 bases by 32 channels.
struct Convolve {
  static constexpr int THREADS = 256, SLOTS = 4, BASES = 64, CHANNELS = 64;
  static constexpr int SLOT_BYTES = (BASES + CHANNELS) * CHUNK_BYTES, SHARED_BYTES = SLOTS * SLOT_BYTES;

  Convolution convolution;
  const void* rows;
  float factor;          // of the bases
  void* convolved_rows;  // of bases or of a gradient
  float* logit_bias;     // of bases
  float* grad_mass;      // of a gradient
  const float* powers;   // of sums or of a gradient
  const float* mass;     // of sums
  float* sums;
  int channels, num_bases;
};

// My share of the products of 64 rows of a tile with a bias: thread t has a quarter of row t / 4.
template <class Math, class Word>
EMA_DEVICE float times_bias(const Tile<Word, Math::CHUNK>& rows, const float* bias, int channels) {
  constexpr int SHARE = Math::CHUNK / 4;
  const int first = threadIdx.x % 4 * SHARE;
  float sum = 0;
  for (int c = first; c < first + SHARE && c < channels; ++c)
    sum = fmaf(Math::widen(*rows.at(threadIdx.x / 4, c)), bias[c], sum);
  return sum;
}

// rows weight for BACKWARD (from what comes out to what goes in), rows weight^T otherwise.
template <class Math, bool BACKWARD>
EMA_DEVICE void convolve_tile(unsigned char* shared, const Convolve& args) {
  using Word = typename Math::Word;
  using Left = Tile<Word, Math::CHUNK>;
  constexpr int SLOTS = Convolve::SLOTS, BASES = Convolve::BASES, CHANNELS = Convolve::CHANNELS;
  using Right = Tile<Word, BACKWARD ? CHANNELS : Math::CHUNK>;
  const int padded = padded_bases(args.num_bases), width = padded_channels(args.channels);
  const int channel = blockIdx.x % (width / CHANNELS) * CHANNELS;
  const int base = blockIdx.x / (width / CHANNELS) % (padded / BASES) * BASES;
  const int image = blockIdx.x / (width / CHANNELS) / (padded / BASES);
  const int64_t row = static_cast<int64_t>(image) * padded + base;
  const Word* rows = static_cast<const Word*>(args.rows) + row * width;
  const Matrix<Word> weight(static_cast<Word*>(const_cast<void*>(args.convolution.weight)), args.channels,
                            args.channels, args.channels);

  auto left_tile = [&](int step) { return Left{shared + step % SLOTS * Convolve::SLOT_BYTES}; };
  auto right_tile = [&](int step) { return Right{shared + step % SLOTS * Convolve::SLOT_BYTES + BASES * CHUNK_BYTES}; };
  auto load_step = [&](int step) {
    const int inner = step * Math::CHUNK;
    load_aligned_tile(left_tile(step), BASES, rows + inner, width);
    if (BACKWARD)
      load_tile(right_tile(step), Math::CHUNK, weight, inner, channel);
    else
      load_tile(right_tile(step), CHANNELS, weight, channel, inner);
  };

  const bool has_bias = BACKWARD && channel == 0;
  float acc[1][4][4] = {}, bias = 0;
  Pipeline pipeline((args.channels - 1) / Math::CHUNK + 1);
  for (int step = 0; step < pipeline.total; ++step) {
    const int inner = step * Math::CHUNK;
    pipeline.advance(step, step + SLOTS, load_step);
    multiply_tiles<Math, false, BACKWARD, Math::CHUNK>(acc, left_tile(step), warp() / 2 * 16, right_tile(step),
                                                       warp() % 2 * 32, 4);
    if (has_bias) bias += times_bias<Math>(left_tile(step), args.convolution.bias + inner, args.channels - inner);
  }

  if (has_bias) {
    bias += __shfl_xor_sync(~0u, bias, 1);
    bias += __shfl_xor_sync(~0u, bias, 2);
    const int k = base + threadIdx.x / 4;
    if (threadIdx.x % 4 == 0 && k < args.num_bases) {
      if (args.grad_mass != nullptr)
        args.grad_mass[row + threadIdx.x / 4] += args.powers[row + threadIdx.x / 4] * bias;
      else
        args.logit_bias[static_cast<int64_t>(image) * args.num_bases + k] = args.factor * bias;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t k = row + warp() / 2 * 16 + lane() / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = channel + warp() % 2 * 32 + 8 * j + lane() % 4 * 2 + e;
        const float value = acc[0][j][2 * half + e];
        if (BACKWARD)
          static_cast<Word*>(args.convolved_rows)[k * width + c] = Math::round(Math::saturate(args.factor * value));
        else
          args.sums[k * width + c] =
              c < args.channels ? args.powers[k] * value + args.convolution.bias[c] * args.mass[k] : 0.f;
      }
  }
}

}  // namespace ema
