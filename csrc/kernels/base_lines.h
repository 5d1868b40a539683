// Bases between the passes over the features, as lines: what the kernels that work on some bases of one image share.
//
// Bases are [C, K] for the caller, with K fastest, and rows [K, C] for the products, so both ways go through shared
// memory: a line of Cp numbers for each base. Lines are 4 numbers apart so that a warp meets every bank once.
#pragma once
#include "../device/chunks.h"
#include "kernels.h"

namespace ema {

constexpr int LINE_THREADS = 256, LINE_WARPS = LINE_THREADS / 32, LINE_GAP = 4;

// Bases of a block: 8 where there are many images, so that [C, K] is written in whole sectors; fewer, with more warps
// each, where the partial sums of a few images would keep only a few multiprocessors busy.
inline int bases_of_block(const Problem& problem) {
  constexpr int enough_blocks = 256;
  int lines = LINE_WARPS;
  while (lines > 1 && problem.images() * (padded_bases(problem.num_bases) / lines) < enough_blocks) lines /= 2;
  return lines;
}

// Which bases of which image a block works on, and the share of my thread in one of them: the channels from `first` on
// in steps of `step`.
struct Place {
  float *values, *memory;  // shared: a number of every warp, and behind them the lines
  int lines, image, first_base, base, padded, width, pitch, first, step;

  EMA_DEVICE Place(unsigned char* shared, int lines, int num_bases, int channels)
      : Place(shared, lines, num_bases, channels, static_cast<int>(blockIdx.x)) {}
  EMA_DEVICE Place(unsigned char* shared, int lines, int num_bases, int channels, int block)
      : values(reinterpret_cast<float*>(shared)),
        memory(values + LINE_WARPS),
        lines(lines),
        padded(padded_bases(num_bases)),
        width(padded_channels(channels)),
        pitch(width + LINE_GAP) {
    const int across = LINE_WARPS / lines;  // warps of a base
    image = block / (padded / lines);
    first_base = block % (padded / lines) * lines;
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
  const int across = LINE_WARPS / place.lines, mine = warp() / across * across;
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
  for (int i = threadIdx.x; i < channels * place.lines; i += LINE_THREADS) {
    int channel = i / place.lines, line = i % place.lines;
    if (place.first_base + line < num_bases)
      body((static_cast<int64_t>(place.image) * channels + channel) * num_bases + place.first_base + line,
           memory[line * place.pitch + channel]);
  }
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

// Launch of a kernel that works on lines, with shared memory for `arrays` lines of `channels` for each base of a block.
template <class Args>
cudaError_t launch_bases(void (*kernel)(Args), const Problem& problem, int channels, int arrays, const Args& args,
                         cudaStream_t stream) {
  dim3 grid(problem.images() * (padded_bases(problem.num_bases) / args.lines));
  int numbers = LINE_WARPS + arrays * args.lines * (padded_channels(channels) + LINE_GAP);
  return launch(kernel, grid, dim3(LINE_THREADS), numbers * static_cast<int>(sizeof(float)), stream, args);
}

}  // namespace ema
