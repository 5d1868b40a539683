// M-step from stored responsibilities by boxes, in place of kernels/m_step.cu.
//
// A block multiplies all bases by a group of channels, over a share of the positions. One thread loads tiles of 64
// positions, every warpgroup multiplies them by 256 channels of its own.
#include "hopper.h"
#include "ring.h"
#include "share.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

constexpr int CHANNELS = M_STEP_CHANNELS;  // of a warpgroup

int group_count(int channels) { return channels > CHANNELS ? M_STEP_GROUPS : 1; }

struct Args {
  MStepPlan plan;
  float* sums;
  int heads, positions, width, groups, channel_groups;  // groups: the warpgroups, and those of channels
};

#if EMA_HOPPER
constexpr int LEFT_BYTES = TILE * CHUNK_BYTES, FEATURE_BYTES = TILE * 2 * CHANNELS;
// The bytes from one operand's 8 lines to its next, and from one 16 positions to the next: a line is a position.
constexpr int STEP = 8 * CHUNK_BYTES, POSITIONS_IN_LINES = 16 * CHUNK_BYTES, POSITIONS_IN_LINE = 16 * 2;

// sums += left^T features over the positions of a tile.
template <class Math, bool POSITIONS_FASTEST>
EMA_DEVICE void multiply(float (&sums)[CHANNELS / 2], const unsigned char* left, const unsigned char* features) {
  const Operand bases = make_operand(left, 0, STEP), channels = make_operand(features, TILE * CHUNK_BYTES, STEP);
  begin_products();
#pragma unroll
  for (int i = 0; i < TILE / 16; ++i)
    multiply_group<Math::DTYPE, CHANNELS, true, !POSITIONS_FASTEST>(
        sums, moved(bases, i * POSITIONS_IN_LINES),
        moved(channels, i * (POSITIONS_FASTEST ? POSITIONS_IN_LINE : POSITIONS_IN_LINES)), true);
  commit_products();
  wait_for_products<0>();
  settle(sums);
}

// Starts the copies of 256 channels of a tile.
template <bool POSITIONS_FASTEST>
EMA_DEVICE void load(unsigned char* memory, const TensorMap& features, Barrier* full, int position, int channel,
                     int head, int batch) {
  if (POSITIONS_FASTEST)
    copy_box(memory, features, full, position, channel, head, batch);
  else
    for (int i = 0; i < CHANNELS / 64; ++i)
      copy_box(memory + i * TILE * CHUNK_BYTES, features, full, channel + 64 * i, position, head, batch);
}
#endif

template <class Math, bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(128 * M_STEP_GROUPS + 32, 1)
    m_step_kernel(const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap features, const Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  const int slot_bytes = LEFT_BYTES + args.groups * FEATURE_BYTES;
  const Share work(args.channel_groups, args.groups * CHANNELS, args.plan.splits, args.heads, args.positions, TILE);
  Ring ring(shared + args.plan.slots * slot_bytes, args.plan.slots);
  if (threadIdx.x == 0) {
    prefetch_map(left);
    prefetch_map(features);
    ring.init(4 * args.groups);
  }
  __syncthreads();
  wait_for_predecessors();

  const int group = warp() / 4;
  if (group == args.groups) {
    if (lane() > 0) return;
    for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile, ring.advance()) {
      Barrier* full = ring.begin_fill(slot_bytes);
      unsigned char* slot = shared + ring.slot * slot_bytes;
      copy_box(slot, left, full, 0, tile * TILE, work.head, work.batch);
      for (int i = 0; i < args.groups; ++i)
        load<POSITIONS_FASTEST>(slot + LEFT_BYTES + i * FEATURE_BYTES, features, full, tile * TILE,
                                work.channel + i * CHANNELS, work.head, work.batch);
    }
    return;
  }

  float sums[CHANNELS / 2] = {};
  for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile, ring.advance()) {
    ring.wait_until_full();
    const unsigned char* slot = shared + ring.slot * slot_bytes;
    multiply<Math, POSITIONS_FASTEST>(sums, slot, slot + LEFT_BYTES + group * FEATURE_BYTES);
    ring.hand_back();
  }
  const int64_t image = static_cast<int64_t>(work.batch) * args.heads + work.head;
  store_sums<Math, CHANNELS>(sums, args.sums, image * args.plan.splits + work.split, work.channel + group * CHANNELS,
                             args.width);
#endif
}

}  // namespace

cudaError_t m_step(const Problem& problem, const MStepPlan& plan, const Features& features, const void* left,
                   float* sums, cudaStream_t stream) {
  TensorMap maps[2];
  cudaError_t error = make_tensor_map(&maps[0], as_matrices(problem, left, problem.positions, 64), TILE);
  if (error == cudaSuccess)
    error = make_tensor_map(&maps[1], as_matrices(problem, features), problem.positions_fastest ? CHANNELS : TILE);
  if (error != cudaSuccess) return error;
  const int width = padded_channels(features.channels), groups = group_count(width);
  const int channel_groups = (width - 1) / (groups * CHANNELS) + 1;
  const dim3 grid(problem.images() * plan.splits * channel_groups);
  const Args args{plan, sums, problem.heads, problem.positions, width, groups, channel_groups};
  return with_half_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = problem.positions_fastest ? m_step_kernel<Math, true> : m_step_kernel<Math, false>;
    return launch(kernel, grid, dim3(128 * groups + 32), plan.shared_memory, stream, maps[0], maps[1], args);
  });
}

}  // namespace ema::hopper
