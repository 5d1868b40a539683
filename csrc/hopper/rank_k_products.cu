// The reconstruction and the gradient of the features by boxes, in place of kernels/rank_k_products.cu.
//
// A block writes tiles of 128 positions by 128 channels: a group of channels of an image, a share of its positions.
// One thread loads, two warpgroups multiply: 64 positions by 128 channels each, or 64 channels by 128 positions if they
// are fastest. Each stores what it made as boxes while the next products run; by its threads where rows of the result do
// not start at multiples of 16 bytes. The right operands stay where all of them fit.
//
// Two blocks of a cluster, with neighbouring groups of channels, have the same left operands: each loads one half of
// every one for both, and its own right operands.
#include "hopper.h"
#include "ring.h"
#include "share.h"
#include "store_rows.h"

namespace ema::hopper {
namespace {

constexpr int GROUPS = PRODUCTS_TILE / 64, MULTIPLIERS = 128 * GROUPS, THREADS = MULTIPLIERS + 32;

struct Args {
  ProductsPlan plan;
  Features out;
  int products, batch, heads, positions, channel_groups;
  float factor;
  bool saturate, boxed;  // boxed: boxes of `out` can be copied
};

#if EMA_HOPPER
constexpr int BOX_BYTES = 64 * CHUNK_BYTES, OPERAND_BYTES = PRODUCTS_OPERAND_BYTES;
constexpr uint16_t BOTH_BLOCKS = 0b11;
constexpr int RESULT_BYTES = PRODUCTS_TILE / 64 * BOX_BYTES;  // of a warpgroup and a tile
constexpr int RESULTS = PRODUCTS_RESULT_BYTES / GROUPS / RESULT_BYTES;

// What lies where in shared memory.
struct Memory {
  unsigned char *right, *left, *results, *barriers;

  EMA_DEVICE Memory(unsigned char* shared, const Args& args)
      : right(shared),
        left(right + (args.plan.resident ? args.products : args.plan.slots) * OPERAND_BYTES),
        results(left + args.plan.slots * OPERAND_BYTES),
        barriers(results + PRODUCTS_RESULT_BYTES) {}
};

// d = left right, or right^T left^T, for the 64 rows of warpgroup `group`; not `first`: added to d.
template <class Math, bool POSITIONS_FASTEST>
EMA_DEVICE void multiply(float (&d)[64], const unsigned char* left, const unsigned char* right, int group, bool first) {
  constexpr int INNER_IN_LINE = 16 * 2, INNER_IN_LINES = 16 * CHUNK_BYTES;  // bytes to the next 16 bases
  const Operand positions = make_operand(POSITIONS_FASTEST ? left : left + group * BOX_BYTES, 0, 8 * CHUNK_BYTES);
  const Operand channels =
      make_operand(POSITIONS_FASTEST ? right + group * BOX_BYTES : right, BOX_BYTES, 8 * CHUNK_BYTES);
  begin_products();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Operand p = moved(positions, i * INNER_IN_LINE), c = moved(channels, i * INNER_IN_LINES);
    multiply_group<Math::DTYPE, PRODUCTS_TILE, POSITIONS_FASTEST, !POSITIONS_FASTEST>(
        d, POSITIONS_FASTEST ? c : p, POSITIONS_FASTEST ? p : c, !first || i > 0);
  }
  commit_products();
  wait_for_products<0>();
  settle(d);
}

// The result of a warpgroup as boxes of 64 columns behind each other.
template <class Math>
EMA_DEVICE void write_result(const float (&d)[64], unsigned char* result, float factor, bool saturate) {
  auto rounded = [&](float value) -> uint32_t {
    value *= factor;
    return Math::round(saturate ? Math::saturate(value) : value);
  };
  const int row = warp() % 4 * 16 + lane() / 4, column = lane() % 4 * 2;
#pragma unroll
  for (int j = 0; j < PRODUCTS_TILE / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Tile<uint16_t, 64> box{result + j / 8 * BOX_BYTES};
      *reinterpret_cast<uint32_t*>(box.at(row + 8 * half, j % 8 * 8 + column)) =
          rounded(d[4 * j + 2 * half]) | rounded(d[4 * j + 2 * half + 1]) << 16;
    }
}
#endif

template <class Math, bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(THREADS, 1)
    rank_k_products_kernel(const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap right,
                           const __grid_constant__ TensorMap out, const Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  const Memory memory(shared, args);
  const int blocks = args.plan.cluster;
  const Share work(args.channel_groups, PRODUCTS_TILE, args.plan.splits, args.heads, args.positions, PRODUCTS_TILE);
  Ring ring(memory.barriers, args.plan.slots, blocks);
  if (threadIdx.x == 0) {
    prefetch_map(left);
    prefetch_map(right);
    if (args.boxed) prefetch_map(out);
    ring.init(MULTIPLIERS / 32);
  }
  __syncwarp();
  meet_cluster();
  wait_for_predecessors();
  auto right_of = [&](int product) {
    return memory.right + (args.plan.resident ? product : ring.slot) * OPERAND_BYTES;
  };

  if (warp() == MULTIPLIERS / 32) {
    if (lane() > 0) return;
    const int line = cluster_rank() * (PRODUCTS_TILE / blocks);  // where its part of every left operand begins
    for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile)
      for (int product = 0; product < args.products; ++product, ring.advance()) {
        const bool has_right = !args.plan.resident || tile == work.tiles.begin;
        const int batch = product * args.batch + work.batch;
        Barrier* full = ring.begin_fill((has_right ? 2 : 1) * OPERAND_BYTES);
        unsigned char* part = memory.left + ring.slot * OPERAND_BYTES + line * CHUNK_BYTES;
        const int position = tile * PRODUCTS_TILE + line;
        if (blocks > 1)
          copy_box_to(BOTH_BLOCKS, part, left, full, 0, position, work.head, batch);
        else
          copy_box(part, left, full, 0, position, work.head, batch);
        for (int i = 0; has_right && i < PRODUCTS_TILE / 64; ++i)
          copy_box(right_of(product) + i * BOX_BYTES, right, full, work.channel + 64 * i, 0, work.head, batch);
      }
    ring.drain();
    return;
  }

  const int group = warp() / 4;
  const bool stores = threadIdx.x % 128 == 0;
  for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile) {
    float d[64] = {};  // undefined, nvcc 12 would wait behind every product
    for (int product = 0; product < args.products; ++product, ring.advance()) {
      ring.wait_until_full();
      multiply<Math, POSITIONS_FASTEST>(d, memory.left + ring.slot * OPERAND_BYTES, right_of(product), group,
                                        product == 0);
      ring.hand_back();
    }
    unsigned char* result = memory.results + (group * RESULTS + tile % RESULTS) * RESULT_BYTES;
    if (stores) wait_for_reads<RESULTS - 1>();
    meet(1 + group, 128);
    write_result<Math>(d, result, args.factor, args.saturate);
    fence_copies();
    meet(1 + group, 128);
    const int position = tile * PRODUCTS_TILE;
    const int row = (POSITIONS_FASTEST ? work.channel : position) + 64 * group;
    const int column = POSITIONS_FASTEST ? position : work.channel;
    const auto image = image_of<uint16_t, POSITIONS_FASTEST>(args.out, work.batch * args.heads + work.head, args.heads,
                                                             args.positions);
    if (!args.boxed) {
      store_rows<64, PRODUCTS_TILE>(result, image, row, column);
    } else if (stores) {
      for (int i = 0; i < PRODUCTS_TILE / 64; ++i)
        if (row < image.rows && column + 64 * i < image.columns)
          store_box(out, result + i * BOX_BYTES, column + 64 * i, row, work.head, work.batch);
      commit_stores();
    }
  }
  if (stores) wait_for_reads<0>();
#endif
}

}  // namespace

cudaError_t rank_k_products(const Problem& problem, const ProductsPlan& plan, int products, const void* left,
                            const void* right, float factor, const Features& out, bool saturate, cudaStream_t stream) {
  TensorMap maps[3] = {};
  Matrices lefts = as_matrices(problem, left, problem.positions, 64);
  Matrices rights = as_matrices(problem, right, 64, padded_channels(out.channels));
  lefts.batch *= products;
  rights.batch *= products;
  cudaError_t error = make_tensor_map(&maps[0], lefts, PRODUCTS_TILE / plan.cluster);
  if (error == cudaSuccess) error = make_tensor_map(&maps[1], rights, 64);
  const bool boxed = can_be_boxed(out, problem.positions_fastest);
  if (error == cudaSuccess && boxed) error = make_tensor_map(&maps[2], as_matrices(problem, out), 64);
  if (error != cudaSuccess) return error;
  const int channel_groups = (out.channels - 1) / PRODUCTS_TILE + 1;
  const dim3 grid(problem.images() * plan.splits * channel_groups);
  const Args args{plan,           out,    products, problem.batch, problem.heads, problem.positions,
                  channel_groups, factor, saturate, boxed};
  return with_half_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = problem.positions_fastest ? rank_k_products_kernel<Math, true> : rank_k_products_kernel<Math, false>;
    return launch_clusters(kernel, grid, dim3(THREADS), plan.cluster, false, plan.shared_memory, stream, maps[0],
                           maps[1], maps[2], args);
  });
}

}  // namespace ema::hopper
