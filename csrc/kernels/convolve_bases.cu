// The first convolution of the unit, applied to bases and their sums instead of the features: K rows and not N.
#include "../device/chunks.h"
#include "../device/pipeline.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256, SLOTS = 4;
constexpr int BASES = 64, CHANNELS = 64;            // of the tile of a block: 4 x 2 warps, each 16 bases by 32 channels
constexpr int SLOT_BYTES = (BASES + CHANNELS) * CHUNK_BYTES;

struct Args {
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
__global__ void __launch_bounds__(THREADS, 1) convolve_kernel(const Args args) {
  using Word = typename Math::Word;
  using Left = Tile<Word, Math::CHUNK>;
  using Right = Tile<Word, BACKWARD ? CHANNELS : Math::CHUNK>;
  EMA_SHARED(shared);
  wait_for_predecessors();
  const int padded = padded_bases(args.num_bases), width = padded_channels(args.channels);
  const int channel = blockIdx.x % (width / CHANNELS) * CHANNELS;
  const int base = blockIdx.x / (width / CHANNELS) % (padded / BASES) * BASES;
  const int image = blockIdx.x / (width / CHANNELS) / (padded / BASES);
  const int64_t row = static_cast<int64_t>(image) * padded + base;
  const Word* rows = static_cast<const Word*>(args.rows) + row * width;
  const Matrix<Word> weight(static_cast<Word*>(const_cast<void*>(args.convolution.weight)), args.channels,
                            args.channels, args.channels);

  auto left_tile = [&](int step) { return Left{shared + step % SLOTS * SLOT_BYTES}; };
  auto right_tile = [&](int step) { return Right{shared + step % SLOTS * SLOT_BYTES + BASES * CHUNK_BYTES}; };
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

template <bool BACKWARD>
cudaError_t convolve(const Problem& problem, Args args, cudaStream_t stream) {
  args.channels = problem.channels;
  args.num_bases = problem.num_bases;
  const dim3 grid(problem.images() * (padded_bases(problem.num_bases) / BASES) *
                  (padded_channels(problem.channels) / CHANNELS));
  return with_math(problem, [&](auto math) {
    return launch(convolve_kernel<decltype(math), BACKWARD>, grid, dim3(THREADS), SLOTS * SLOT_BYTES, stream, args);
  });
}

}  // namespace

cudaError_t convolve_bases(const Problem& problem, const Convolution& convolution, const void* rows, float factor,
                           void* logit_rows, float* logit_bias, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = rows;
  args.factor = factor;
  args.convolved_rows = logit_rows;
  args.logit_bias = logit_bias;
  return convolve<true>(problem, args, stream);
}

cudaError_t convolve_gradient(const Problem& problem, const Convolution& convolution, const void* rows,
                              const float* powers, void* convolved_rows, float* grad_mass, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = rows;
  args.factor = 1;
  args.convolved_rows = convolved_rows;
  args.powers = powers;
  args.grad_mass = grad_mass;
  return convolve<true>(problem, args, stream);
}

cudaError_t convolve_sums(const Problem& problem, const Convolution& convolution, const PackedSums& packed,
                          float* sums, cudaStream_t stream) {
  Args args{};
  args.convolution = convolution;
  args.rows = packed.rows;
  args.powers = packed.powers;
  args.mass = packed.mass;
  args.sums = sums;
  return convolve<false>(problem, args, stream);
}

}  // namespace ema
