// M-step from stored responsibilities: features^T left for a group of channels and a share of the positions.
#include "../device/pipeline.h"
#include "../device/row_block.h"
#include "../hopper/hopper.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256;

struct Args {
  Features features;
  const void* left;
  float* sums;
  MStepPlan plan;
  int heads, positions, num_bases;
};

// A warp multiplies 64 bases by 64 channels, a block all bases by as many channels as its warps then reach.
template <class Math, bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(THREADS, 1) m_step_kernel(const Args args) {
  using Word = typename Math::Word;
  constexpr int STEP = Math::CHUNK;  // positions of a stage
  constexpr int PIECE = STEP * 64 * static_cast<int>(sizeof(Word));
  using Left = Tile<Word, 64>;
  using Right = Tile<Word, POSITIONS_FASTEST ? STEP : 64>;
  EMA_SHARED(shared);
  wait_for_predecessors();
  const int padded = padded_bases(args.num_bases), width = padded_channels(args.features.channels);
  const int base_groups = padded / 64, channel_groups = min(8 / base_groups, width / 64);
  const int group_width = channel_groups * 64, groups = (width + group_width - 1) / group_width;
  const int split = blockIdx.x % args.plan.splits, group = blockIdx.x / args.plan.splits % groups;
  const int image = blockIdx.x / args.plan.splits / groups;
  const TileRange tiles(args.positions, args.plan.splits, split);
  const auto x = image_of<Word, POSITIONS_FASTEST>(args.features, image, args.heads, args.positions);
  const Matrix<Word> left(
      static_cast<Word*>(const_cast<void*>(args.left)) + static_cast<int64_t>(image) * args.positions * padded, padded,
      args.positions, padded);

  auto piece = [&](int step, int index) {
    return shared + (step % args.plan.slots * (base_groups + channel_groups) + index) * PIECE;
  };
  auto load_step = [&](int step) {
    int position = tiles.begin * TILE + step * STEP;
    for (int i = 0; i < base_groups; ++i) load_tile(Left{piece(step, i)}, STEP, left, position, 64 * i);
    for (int i = 0; i < channel_groups; ++i) {
      Right tile{piece(step, base_groups + i)};
      int channel = group * group_width + 64 * i;
      if (POSITIONS_FASTEST)
        load_tile(tile, 64, x, channel, position);
      else
        load_tile(tile, STEP, x, position, channel);
    }
  };

  const int base_group = warp() % base_groups, channel_group = warp() / base_groups;
  const int channel = group * group_width + 64 * channel_group;
  const bool works = channel_group < channel_groups && channel < width;
  float sums[4][8][4] = {};
  Pipeline pipeline(tiles.count() * (TILE / STEP));
  for (int i = 0; i < pipeline.total; ++i) {
    pipeline.advance(i, i + args.plan.slots, load_step);
    if (works)
      multiply_tiles<Math, true, !POSITIONS_FASTEST, STEP>(sums, Left{piece(i, base_group)}, 0,
                                                           Right{piece(i, base_groups + channel_group)}, 0, 8);
  }
  const int64_t slot = static_cast<int64_t>(image) * args.plan.splits + split;
  if (works) store_sums(sums, args.sums + slot * padded * width, width, 64 * base_group, channel);
}

}  // namespace

cudaError_t m_step(const Problem& problem, const MStepPlan& plan, const Features& features, const void* left,
                   float* sums, cudaStream_t stream) {
  if (plan.hopper) return hopper::m_step(problem, plan, features, left, sums, stream);
  int width = padded_channels(features.channels) / 64, reach = 8 / (padded_bases(problem.num_bases) / 64);
  int groups = (width + reach - 1) / reach;
  dim3 grid(problem.images() * plan.splits * groups);
  Args args{features, left, sums, plan, problem.heads, problem.positions, problem.num_bases};
  return with_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = problem.positions_fastest ? m_step_kernel<Math, true> : m_step_kernel<Math, false>;
    return launch(kernel, grid, dim3(THREADS), plan.shared_memory, stream, args);
  });
}

}  // namespace ema
