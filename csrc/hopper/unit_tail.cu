// The end of the unit, relu(x + relu(Z M^T) W^T + bias), in place of kernels/unit_tail.cu.
//
// A block writes tiles of 128 positions by 256 channels of y: a group of channels of an image, a share of its
// positions. One thread loads the bases and the weight, 64 inner channels after the other. Two warpgroups have 64
// positions each: what a warpgroup makes of the bases is at once, in its registers, the left operand of the product
// with the weight. It loads its own responsibilities and its own x, to where y will leave from. Where rows of x or y,
// with positions fastest, start anywhere, a warp beside the loading thread brings x, and the threads store y themselves.
//
// Two blocks of a cluster, with neighbouring positions, load one half of every piece each, for both. Where the image
// ends within their tile both still go through the same pieces: what lies beyond it is zeros, and is not stored.
#include "hopper.h"
#include "ring.h"
#include "share.h"
#include "store_rows.h"
#include "unit_tail_rows.h"

namespace ema::hopper {
namespace {

constexpr int GROUPS = UNIT_TAIL_POSITIONS / 64, MULTIPLIERS = 128 * GROUPS, THREADS = MULTIPLIERS + 128;
constexpr int OUTPUTS = UNIT_TAIL_OUTPUTS;

struct Args {
  UnitTailPlan plan;
  Features x, y;
  const float* bias;
  int heads, positions, channels, channel_groups;
};

#if EMA_HOPPER
constexpr int BOX_BYTES = 64 * CHUNK_BYTES, WEIGHT_BYTES = OUTPUTS * CHUNK_BYTES;
constexpr uint16_t BOTH_BLOCKS = 0b11;
constexpr int RESULT_BYTES = OUTPUTS / 64 * BOX_BYTES;
constexpr int STEP = 8 * CHUNK_BYTES, INNER_IN_LINE = 16 * 2, INNER_IN_LINES = 16 * CHUNK_BYTES;

// What a warpgroup has for itself in shared memory: x and then y of a tile, responsibilities of two tiles and, of x whose
// rows start anywhere, ends of lines.
struct GroupMemory {
  unsigned char *result, *responsibilities, *ends;
  Barrier *has_x, *has_z, *result_is_stored;  // one, two, and one

  EMA_DEVICE GroupMemory(unsigned char* shared, int slots, int group)
      : result(shared + slots * UNIT_TAIL_SLOT_BYTES + group * (RESULT_BYTES + 2 * BOX_BYTES)),
        responsibilities(result + RESULT_BYTES),
        ends(shared + slots * UNIT_TAIL_SLOT_BYTES + UNIT_TAIL_GROUPS_BYTES + UNIT_TAIL_BARRIER_BYTES + group * OUTPUTS * 16),
        has_x(reinterpret_cast<Barrier*>(shared + slots * UNIT_TAIL_SLOT_BYTES + UNIT_TAIL_GROUPS_BYTES) + 2 * slots +
              4 * group),
        has_z(has_x + 1),
        result_is_stored(has_z + 2) {}

  // By one thread, before the block or the cluster meets.
  EMA_DEVICE void init() const {
    for (Barrier* barrier : {has_x, has_z, has_z + 1}) init_barrier(barrier, 1);
    init_barrier(result_is_stored, GROUP_WARPS);
    publish_barriers();
  }
};

// ReLU that lets NaN through.
EMA_DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }

template <class Math>
EMA_DEVICE uint32_t relu_pair(float first, float second) {
  return Math::round(relu(first)) | static_cast<uint32_t>(Math::round(relu(second))) << 16;
}

// r = relu(Z M^T) of 64 channels as the left operand of 4 products.
template <class Math>
EMA_DEVICE void reconstruct(uint32_t (&r)[4][4], const unsigned char* responsibilities, const unsigned char* values) {
  const Operand left = make_operand(responsibilities, 0, STEP), right = make_operand(values, 0, STEP);
  float sums[32];
  begin_products();
#pragma unroll
  for (int i = 0; i < 4; ++i)
    multiply_group<Math::DTYPE, 64, false, true>(sums, moved(left, i * INNER_IN_LINE), moved(right, i * INNER_IN_LINES),
                                                 i > 0);
  commit_products();
  wait_for_products<0>();
  settle(sums);
  // two neighbouring numbers of a product are two of its channels
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      r[i][e] = relu_pair<Math>(sums[8 * i + 2 * e] / RESPONSIBILITY_SCALE,
                                sums[8 * i + 2 * e + 1] / RESPONSIBILITY_SCALE);
}

// d (+)= r weight^T.
template <class Math>
EMA_DEVICE void convolve(float (&d)[OUTPUTS / 2], const uint32_t (&r)[4][4], const unsigned char* weight, bool first) {
  const Operand right = make_operand(weight, 0, STEP);
  begin_products();
#pragma unroll
  for (int i = 0; i < 4; ++i)
    multiply_group<Math::DTYPE, OUTPUTS, false>(d, r[i], moved(right, i * INNER_IN_LINE), !first || i > 0);
  commit_products();
  wait_for_products<0>();
  settle(d);
}

// relu(x + d + bias) in place of x: boxes of 64 positions by 64 channels, or the other way round.
template <class Math, bool POSITIONS_FASTEST>
EMA_DEVICE void finish(const float (&d)[OUTPUTS / 2], unsigned char* result, const float* bias, int channels) {
  const int position = warp() % 4 * 16, l = lane();
#pragma unroll
  for (int i = 0; i < OUTPUTS / 16; ++i) {
    const Tile<uint16_t, 64> box{result + i / 4 * BOX_BYTES};
    const int first = i % 4 * 16;  // channel of the box
    // 8 x 8 matrices of 16 positions by 16 channels
    uint16_t* line = box.at(first + l / 16 * 8 + l % 8, position + l / 8 % 2 * 8);
    auto word = [&](int e) {
      return reinterpret_cast<uint32_t*>(box.at(position + e % 2 * 8 + l / 4, first + e / 2 * 8 + l % 4 * 2));
    };
    uint32_t x[4];
    if constexpr (POSITIONS_FASTEST) load_matrices_transposed(x, line);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!POSITIONS_FASTEST) x[e] = *word(e);
      const int channel = 16 * i + e / 2 * 8 + l % 4 * 2;
      const float a = channel < channels ? bias[channel] : 0.f, b = channel < channels ? bias[channel + 1] : 0.f;
      x[e] = relu_pair<Math>(Math::widen(static_cast<uint16_t>(x[e])) + (d[8 * i + 2 * e] + a),
                             Math::widen(static_cast<uint16_t>(x[e] >> 16)) + (d[8 * i + 2 * e + 1] + b));
      if (!POSITIONS_FASTEST) *word(e) = x[e];
    }
    if constexpr (POSITIONS_FASTEST) store_matrices_transposed(line, x);
  }
}
#endif

struct Maps {
  TensorMap responsibilities, values, weight, x, y;
};

template <class Math, bool POSITIONS_FASTEST, bool ANY_ROWS>
__global__ void __launch_bounds__(THREADS, 1) unit_tail_kernel(const __grid_constant__ Maps maps, const Args args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  const int blocks = args.plan.cluster, rank = cluster_rank();
  const Share work(args.channel_groups, OUTPUTS, args.plan.splits, args.heads, args.positions,
                   blocks * UNIT_TAIL_POSITIONS, blocks);
  const int chunks = (args.channels - 1) / 64 + 1, group = warp() / 4;
  Ring ring(shared + args.plan.slots * UNIT_TAIL_SLOT_BYTES + UNIT_TAIL_GROUPS_BYTES, args.plan.slots, blocks);
  const GroupMemory mine(shared, args.plan.slots, group);
  const bool leads = threadIdx.x % 128 == 0;
  if (leads && group == GROUPS) {
    for (auto* map : {&maps.weight, &maps.values, &maps.responsibilities}) prefetch_map(*map);
    if (!ANY_ROWS)
      for (auto* map : {&maps.x, &maps.y}) prefetch_map(*map);
  }
  if (threadIdx.x == 0) ring.init(MULTIPLIERS / 32);
  if (leads && group < GROUPS) mine.init();
  __syncwarp();
  meet_cluster();
  wait_for_predecessors();

  auto position_of = [&](int tile, int group) { return (tile * blocks + rank) * UNIT_TAIL_POSITIONS + 64 * group; };
  auto image_of_rows = [&](const Features& features) {
    return image_of<uint16_t, true>(features, work.batch * args.heads + work.head, args.heads, args.positions);
  };
  if (group == GROUPS) {
    give_registers<ANY_ROWS ? 40 : 24>();
    const int served = warp() - MULTIPLIERS / 32 - 1;
    if (ANY_ROWS && served >= 0 && served < GROUPS) {
      const GroupMemory theirs(shared, args.plan.slots, served);
      const Matrix<uint16_t> x = image_of_rows(args.x);
      const UnitTailRows<OUTPUTS> rows(x, work.channel, theirs.result, theirs.ends);
      for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile) {
        wait(theirs.result_is_stored, ((tile - work.tiles.begin) & 1) ^ 1);
        rows.bring(position_of(tile, served));
        arrive_as_warp(theirs.has_x);
      }
    }
    if (threadIdx.x != MULTIPLIERS) return;
    const int weight_line = rank * (OUTPUTS / blocks), value_line = rank * (64 / blocks);  // where its part begins
    auto copy = [&](unsigned char* to, const TensorMap& map, Barrier* full, int column, int line, int head, int batch) {
      if (blocks > 1)
        copy_box_to(BOTH_BLOCKS, to, map, full, column, line, head, batch);
      else
        copy_box(to, map, full, column, line, head, batch);
    };
    for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile)
      for (int chunk = 0; chunk < chunks; ++chunk, ring.advance()) {
        Barrier* full = ring.begin_fill(UNIT_TAIL_SLOT_BYTES);
        unsigned char* slot = shared + ring.slot * UNIT_TAIL_SLOT_BYTES;
        copy(slot + weight_line * CHUNK_BYTES, maps.weight, full, 64 * chunk, work.channel + weight_line, 0, 0);
        copy(slot + WEIGHT_BYTES + value_line * CHUNK_BYTES, maps.values, full, 64 * chunk, value_line, work.head,
             work.batch);
      }
    ring.drain();
    return;
  }

  take_registers<ANY_ROWS ? 232 : 240>();
  auto load_responsibilities = [&](int tile) {
    arrive_expecting(&mine.has_z[tile % 2], BOX_BYTES);
    copy_box(mine.responsibilities + tile % 2 * BOX_BYTES, maps.responsibilities, &mine.has_z[tile % 2], 0,
             position_of(tile, group), work.head, work.batch);
  };
  // calls body(box in shared memory, column, line) for every box of x and y
  auto for_boxes = [&](int tile, auto body) {
    for (int i = 0; i < OUTPUTS / 64; ++i) {
      const int channel = work.channel + 64 * i, position = position_of(tile, group);
      body(mine.result + i * BOX_BYTES, POSITIONS_FASTEST ? position : channel, POSITIONS_FASTEST ? channel : position);
    }
  };
  if (leads) load_responsibilities(work.tiles.begin);
  for (int tile = work.tiles.begin; tile < work.tiles.end; ++tile) {
    const int turn = tile - work.tiles.begin;
    if (leads) {
      if (tile + 1 < work.tiles.end) load_responsibilities(tile + 1);
      if constexpr (!ANY_ROWS) {
        wait_for_reads<0>();
        arrive_expecting(mine.has_x, RESULT_BYTES);
        for_boxes(tile, [&](unsigned char* box, int column, int line) {
          copy_box(box, maps.x, mine.has_x, column, line, work.head, work.batch);
        });
      }
    }
    float d[OUTPUTS / 2] = {};  // undefined, nvcc 12 would wait behind every product
    wait(&mine.has_z[tile % 2], turn / 2 & 1);
    for (int chunk = 0; chunk < chunks; ++chunk, ring.advance()) {
      uint32_t r[4][4];
      ring.wait_until_full();
      const unsigned char* slot = shared + ring.slot * UNIT_TAIL_SLOT_BYTES;
      reconstruct<Math>(r, mine.responsibilities + tile % 2 * BOX_BYTES, slot + WEIGHT_BYTES);
      convolve<Math>(d, r, slot, chunk == 0);
      ring.hand_back();
    }
    wait(mine.has_x, turn & 1);
    finish<Math, POSITIONS_FASTEST>(d, mine.result, args.bias + work.channel, args.channels - work.channel);
    if constexpr (ANY_ROWS) {
      meet(1 + group, 128);
      store_rows<OUTPUTS, 64>(mine.result, image_of_rows(args.y), work.channel, position_of(tile, group));
      arrive_as_warp(mine.result_is_stored);
    } else {
      fence_copies();
      meet(1 + group, 128);
      if (leads) {
        for_boxes(tile, [&](unsigned char* box, int column, int line) {
          if (column < (POSITIONS_FASTEST ? args.positions : args.channels) &&
              line < (POSITIONS_FASTEST ? args.channels : args.positions))
            store_box(maps.y, box, column, line, work.head, work.batch);
        });
        commit_stores();
      }
    }
  }
  if (leads) wait_for_reads<0>();
#endif
}

}  // namespace

cudaError_t unit_tail(const Problem& problem, const UnitTailPlan& plan, const UnitTail& io, cudaStream_t stream) {
  const int channels = io.x.channels;
  Maps maps{};
  Matrices weight = as_matrices(problem, io.convolution.weight, channels, channels);
  weight.batch = weight.heads = 1;
  const struct {
    TensorMap* map;
    Matrices matrices;
    int lines;
  } wanted[] = {{&maps.responsibilities, as_matrices(problem, io.responsibilities, problem.positions, 64), 64},
                {&maps.values, as_matrices(problem, io.value_rows, 64, padded_channels(channels)), 64 / plan.cluster},
                {&maps.weight, weight, OUTPUTS / plan.cluster},
                {&maps.x, as_matrices(problem, io.x), 64},
                {&maps.y, as_matrices(problem, io.y), 64}};
  for (const auto& [map, matrices, lines] : wanted) {
    if (plan.any_rows && (map == &maps.x || map == &maps.y)) continue;
    if (const cudaError_t error = make_tensor_map(map, matrices, lines); error != cudaSuccess) return error;
  }
  const int channel_groups = (channels - 1) / OUTPUTS + 1;
  const dim3 grid(problem.images() * plan.splits * channel_groups * plan.cluster);
  const Args args{plan, io.x, io.y, io.convolution.bias, problem.heads, problem.positions, channels, channel_groups};
  return with_half_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto kernel = plan.any_rows                ? unit_tail_kernel<Math, true, true>
                  : problem.positions_fastest ? unit_tail_kernel<Math, true, false>
                                              : unit_tail_kernel<Math, false, false>;
    return launch_clusters(kernel, grid, dim3(THREADS), plan.cluster, false, plan.shared_memory, stream, maps, args);
  });
}

}  // namespace ema::hopper
