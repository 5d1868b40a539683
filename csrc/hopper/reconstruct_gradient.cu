// The gradient of a reconstruction to both its factors, so that the gradient of y is read once: warpgroup 0 multiplies it
// by the value rows, which stay in shared memory, and those behind it, each for its channels, by responsibilities.
#include "feature_tile.h"
#include "gradient_layout.h"
#include "group_tile.h"
#include "ring.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

struct Args {
  ReconstructGradient io;
  int splits, stages, heads, positions;
  TensorMap grad_y, value_rows, responsibilities;
};

template <class Kind>
struct Variant : Kind {
  static constexpr int M_GROUPS = Kind::CHANNELS == 512 ? 2 : 1;
  static constexpr int THREADS = (1 + M_GROUPS) * GROUP;
};

#if EMA_HOPPER
constexpr int POSITIONS = GradientLayout::POSITIONS;

// What a block works on.
struct BlockTiles {
  int image, begin, count;  // tiles

  EMA_DEVICE explicit BlockTiles(const Args& args) {
    // every role asks anew, or what all have in common would be spilled
    const int block = opaque(blockIdx.x);
    const TileRange tiles(args.positions, args.splits, block % args.splits, POSITIONS);
    image = block / args.splits, begin = tiles.begin, count = tiles.count();
  }
};

// grad_y value_rows^T. A thread has two bases of 8 positions.
template <class V>
EMA_DEVICE void multiply_by_rows(const Args& args, const unsigned char* rows, unsigned char* stages, Ring ring) {
  constexpr int STAGE_BYTES = ReconstructGradientLayout::stage_bytes(V::CHANNELS);
  const BlockTiles share(args);
  for (int i = 0; i < share.count; ++i, ring.advance()) {
    float d[POSITIONS / 2];
    ring.wait_until_full();
    begin_products();
    FeatureTile<V>{stages + ring.slot * STAGE_BYTES}.multiply_rows(d, rows);
    commit_products();
    wait_for_products<0>();
    settle(d);
    ring.hand_back();
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int position = (share.begin + i) * POSITIONS + position_of(c);
      if (position >= args.positions) continue;
      float* line = args.io.products + (static_cast<int64_t>(share.image) * args.positions + position) * 64;
      line[first_base()] = d[at(c)];
      line[first_base() + 8] = d[at(c) + 2];
    }
  }
}

// grad_y^T responsibilities, of the channels of one warpgroup; the first of them loads.
template <class V>
EMA_DEVICE void add_up(const Args& args, unsigned char* stages, Ring ring, Ring fill_ring, int part) {
  using Features = FeatureTile<V>;
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS;
  constexpr int STAGE_BYTES = ReconstructGradientLayout::stage_bytes(V::CHANNELS);
  constexpr int FEATURE_BYTES = Features::BOXES * Features::BOX_BYTES;
  const BlockTiles share(args);
  const bool loads = part == 0 && group_thread() == 0;
  auto load = [&](int i) {
    if (!loads || i >= share.count) return;
    const int head = share.image % args.heads, batch = share.image / args.heads;
    const int position = (share.begin + i) * POSITIONS;
    unsigned char* stage = stages + fill_ring.slot * STAGE_BYTES;
    Barrier* full = fill_ring.begin_fill(STAGE_BYTES);
    for (int box = 0; box < Features::BOXES; ++box)
      Features{stage}.copy(box, args.grad_y, full, position, head, batch);
    copy_box(stage + FEATURE_BYTES, args.responsibilities, full, 0, position, head, batch);
    fill_ring.advance();
  };
  for (int i = 0; i < args.stages - 1; ++i) load(i);
  __syncwarp();
  float sums[COLUMNS / 2] = {};
  for (int i = 0; i < share.count; ++i, ring.advance()) {
    unsigned char* stage = stages + ring.slot * STAGE_BYTES;
    ring.wait_until_full();
    begin_products();
    Features{stage}.template add_sums<COLUMNS>(sums, stage + FEATURE_BYTES, part * (COLUMNS / 64));
    commit_products();
    // to the stage of the last tile, which all have handed back or soon will
    load(i + args.stages - 1);
    __syncwarp();
    wait_for_products<0>();
    ring.hand_back();
  }
  settle(sums);
  store_sums<typename V::Math, COLUMNS>(sums, args.io.sums, blockIdx.x, part * COLUMNS,
                                        padded_channels(args.io.grad_y.channels));
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1) reconstruct_gradient_kernel(const __grid_constant__ Args args) {
#if EMA_HOPPER
  using Layout = ReconstructGradientLayout;
  EMA_SHARED(shared);
  if (threadIdx.x == 0) {
    prefetch_map(args.value_rows);
    prefetch_map(args.grad_y);
    prefetch_map(args.responsibilities);
  }
  wait_for_predecessors();
  unsigned char* rows = shared + Layout::BARRIER_BYTES;
  unsigned char* stages = rows + GradientLayout::rows_bytes(V::CHANNELS);
  Barrier* rows_full = reinterpret_cast<Barrier*>(shared);
  Ring ring(rows_full + 1, args.stages);
  if (threadIdx.x == 0) {
    init_barrier(rows_full, 1);
    ring.init(V::THREADS / 32);
    const BlockTiles share(args);
    arrive_expecting(rows_full, GradientLayout::rows_bytes(V::CHANNELS));
    for (int box = 0; box < V::CHANNELS / 64; ++box)
      copy_box(rows + box * 64 * 128, args.value_rows, rows_full, 64 * box, 0, share.image % args.heads,
               share.image / args.heads);
  }
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  if (group == 0) {
    wait(rows_full, 0);
    multiply_by_rows<V>(args, rows, stages, ring);
  } else {
    add_up<V>(args, stages, ring, ring, group - 1);
  }
#endif
}

}  // namespace

cudaError_t reconstruct_gradient(const Problem& problem, const MStepPlan& plan, const ReconstructGradient& io,
                                 cudaStream_t stream) {
  Args args{io, plan.splits, plan.slots, problem.heads, problem.positions, {}, {}, {}};
  const int width = padded_channels(io.grad_y.channels), lines = GradientLayout::POSITIONS;
  cudaError_t error = make_tile_map(&args.grad_y, problem, io.grad_y);
  if (error == cudaSuccess) error = make_tensor_map(&args.value_rows, as_matrices(problem, io.value_rows, 64, width), 64);
  if (error == cudaSuccess)
    error = make_tensor_map(&args.responsibilities, as_matrices(problem, io.responsibilities, problem.positions, 64),
                            lines);
  if (error != cudaSuccess) return error;
  return with_kind(problem, io.grad_y.channels, [&](auto kind) {
    using V = Variant<decltype(kind)>;
    return launch(reconstruct_gradient_kernel<V>, dim3(problem.images() * plan.splits), dim3(V::THREADS),
                  plan.shared_memory, stream, args);
  });
}

}  // namespace ema::hopper
