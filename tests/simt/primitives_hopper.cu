// Every instruction of csrc/hopper/ptx.h in a kernel of its own.
#include "hopper/ptx.h"

namespace {

using namespace ema;

TensorMap map_of(const void* data, int columns, int lines, int heads, int batch, int box, int box_columns = 64) {
  Matrices matrices;
  matrices.data = data;
  matrices.columns = columns, matrices.lines = lines, matrices.heads = heads, matrices.batch = batch;
  matrices.line_stride = columns;
  matrices.head_stride = int64_t{columns} * lines;
  matrices.batch_stride = matrices.head_stride * heads;
  TensorMap map{};
  if (make_tensor_map(&map, matrices, box, box_columns) != cudaSuccess) std::abort();
  return map;
}

struct Boxes {
  int start[4];
  bool to_others;
};

// Every block of a cluster copies a box, or its first block one to all of them; all look at their tile [lines, 64 or 32]
// and store it as a box of another matrix.
__global__ void boxes_kernel(const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap out, uint16_t* seen,
                             Boxes boxes) {
  EMA_SHARED(shared);
  const int columns = in.columns, line = 2 * columns, bytes = line * in.lines;
  auto* barrier = reinterpret_cast<Barrier*>(shared + bytes);
  const int thread = threadIdx.x, rank = cluster_rank();
  const int* at = boxes.start;
  if (thread == 0) {
    init_barrier(barrier, 1);
    publish_barriers();
  }
  meet_cluster();
  if (thread == 0) {
    arrive_expecting(barrier, bytes);
    if (!boxes.to_others)
      copy_box(shared, in, barrier, at[0] + columns * rank, at[1], at[2], at[3]);
    else if (rank == 0)
      copy_box_to(0b1111, shared, in, barrier, at[0], at[1], at[2], at[3]);
  }
  wait(barrier, 0);
  for (int i = thread; i < columns * in.lines; i += blockDim.x) {
    const int row = i / columns, unit = columns == 64 ? row % 8 : row / 2 % 4;
    seen[rank * columns * in.lines + i] = *reinterpret_cast<uint16_t*>(shared + row * line + (i % columns * 2 ^ unit * 16));
  }
  __syncthreads();
  if (thread == 0) {
    fence_copies();
    store_box(out, shared, at[0] + columns * rank, at[1], at[2], at[3]);
    commit_stores();
    wait_for_reads<0>();
  }
}

// Sixteen numbers behind each other, over three phases of a barrier on which 32 threads wait.
__global__ void bytes_kernel(const float* in, float* out) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  auto* barrier = reinterpret_cast<Barrier*>(shared + 64);
  const int thread = threadIdx.x;
  if (thread == 0) {
    init_barrier(barrier, 2);
    publish_barriers();
  }
  __syncthreads();
  for (int phase = 0; phase < 3; ++phase) {
    if (thread == 0) {
      arrive_expecting(barrier, 64);
      copy_bytes(numbers, in + 16 * phase, 64, barrier);
    }
    if (thread == 31) arrive(barrier);
    wait(barrier, phase & 1);
    const float number = numbers[thread % 16];
    __syncthreads();
    if (thread < 16) out[16 * phase + thread] = 2 * number;
    fence_copies();
    __syncthreads();
  }
}

enum Form { both_shared, a_in_registers };

// d [2, 64, COLUMNS] += A[64, 64] B[64, COLUMNS] of each of two warpgroups, and the same once more after the first half.
// A and B lie in tiles as the boxes of `a` ([64, 64] or, TRANSPOSED, with its lines for the inner dimension) and `b`,
// whose lines have `line` bytes.
template <Dtype DTYPE, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED, Form FORM>
__global__ void product_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int line, float* d) {
  EMA_SHARED(shared);
  unsigned char* right = shared + 2 * 8192;
  const int box = line * (B_TRANSPOSED ? 64 : COLUMNS), box_columns = line / 2;
  const int boxes = ((B_TRANSPOSED ? COLUMNS : 64) + box_columns - 1) / box_columns;
  auto* barrier = reinterpret_cast<Barrier*>(right + boxes * box);
  const int thread = threadIdx.x, group = thread / 128, warp = thread / 32 % 4, g = thread % 32 / 4, t = thread % 4;
  if (thread == 0) {
    init_barrier(barrier, 1);
    publish_barriers();
    arrive_expecting(barrier, 2 * 8192 + boxes * box);
    for (int i = 0; i < 2; ++i) copy_box(shared + 8192 * i, a, barrier, 0, 0, i, 0);
    for (int i = 0; i < boxes; ++i) copy_box(right + box * i, b, barrier, box_columns * i, 0, 0, 0);
  }
  __syncthreads();
  wait(barrier, 0);
  float sums[COLUMNS / 2];
  const Operand left_operand = make_operand(shared + 8192 * group, A_TRANSPOSED ? 8192 : 0, 1024);
  const Operand right_operand = make_operand(right, B_TRANSPOSED ? box : 0, 8 * line, line);
  begin_products();
  for (int k = 0; k < 4; ++k) {
    const Operand right_k = moved(right_operand, B_TRANSPOSED ? 16 * line * k : 32 * k / line * box + 32 * k % line);
    if constexpr (FORM == both_shared) {
      const Operand left_k = moved(left_operand, A_TRANSPOSED ? 2048 * k : 32 * k);
      multiply_group<DTYPE, COLUMNS, A_TRANSPOSED, B_TRANSPOSED>(sums, left_k, right_k, k > 0);
    } else {
      uint32_t left_k[4];
      for (int r = 0; r < 4; ++r) {
        const int row = 16 * warp + g + r % 2 * 8, byte = 2 * (16 * k + 2 * t + r / 2 * 8);
        std::memcpy(&left_k[r], shared + 8192 * group + row * 128 + (byte ^ row % 8 * 16), 4);
      }
      multiply_group<DTYPE, COLUMNS, B_TRANSPOSED>(sums, left_k, right_k, k > 0);
    }
    if (k == 1) commit_products();
  }
  commit_products();
  wait_for_products<1>();
  wait_for_products<0>();
  for (int j = 0; j < COLUMNS / 8; ++j)
    for (int e = 0; e < 4; ++e)
      d[(64 * group + 16 * warp + g + e / 2 * 8) * COLUMNS + 8 * j + 2 * t + e % 2] += sums[4 * j + e];
}

template <Dtype DTYPE, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED, Form FORM>
int product_of(int line, const void* a, const void* b, float* d) {
  const TensorMap left = map_of(a, 64, 64, 2, 1, 64);
  const TensorMap right =
      B_TRANSPOSED ? map_of(b, COLUMNS, 64, 1, 1, 64, line / 2) : map_of(b, 64, COLUMNS, 1, 1, COLUMNS, line / 2);
  return launch(product_kernel<DTYPE, COLUMNS, A_TRANSPOSED, B_TRANSPOSED, FORM>, dim3(1), dim3(256),
                2 * 8192 + std::max(COLUMNS, 64) * 128 + 8, nullptr, left, right, line, d);
}

template <Dtype DTYPE, int COLUMNS>
int product_in(bool a_transposed, bool b_transposed, bool registers, int line, const void* a, const void* b, float* d) {
  if (registers)
    return b_transposed ? product_of<DTYPE, COLUMNS, false, true, a_in_registers>(line, a, b, d)
                        : product_of<DTYPE, COLUMNS, false, false, a_in_registers>(line, a, b, d);
  if (a_transposed)
    return b_transposed ? product_of<DTYPE, COLUMNS, true, true, both_shared>(line, a, b, d)
                        : product_of<DTYPE, COLUMNS, true, false, both_shared>(line, a, b, d);
  return b_transposed ? product_of<DTYPE, COLUMNS, false, true, both_shared>(line, a, b, d)
                      : product_of<DTYPE, COLUMNS, false, false, both_shared>(line, a, b, d);
}

// Of the second of two warpgroups, two warps write in turn what the other two read; the first warpgroup has left.
__global__ void meet_kernel(int* out) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<int*>(shared);
  const int thread = threadIdx.x - 128;
  give_registers<40>();
  if (thread < 0) return;
  for (int i = 0; i < 3; ++i) {
    if (thread < 64) {
      numbers[thread] = 100 * i + thread;
      meet(1, 128);
    } else {
      meet(1, 128);
      out[64 * i + thread - 64] = numbers[127 - thread];
    }
    meet(2, 128);
  }
}

// r [32, 4] to four matrices [8, 8] behind each other.
__global__ void matrices_kernel(const uint32_t* r, uint16_t* out) {
  EMA_SHARED(shared);
  const int lane = threadIdx.x;
  const uint32_t mine[4] = {r[4 * lane], r[4 * lane + 1], r[4 * lane + 2], r[4 * lane + 3]};
  store_matrices_transposed(shared + 16 * lane, mine);
  __syncwarp();
  std::memcpy(out + 8 * lane, shared + 16 * lane, 16);
}

// Blocks of a cluster read each other's number and arrive at the barriers of those behind them, and at their own; a block
// of every cluster adds to the next cluster's sum, in order.
__global__ void cluster_kernel(float* out, unsigned* count, float* sum, int cluster) {
  EMA_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, rank = cluster_rank(), number = static_cast<int>(blockIdx.x) / cluster;
  auto* barrier = reinterpret_cast<Barrier*>(shared + 16);
  if (thread < 4) numbers[thread] = static_cast<float>(10 * blockIdx.x + thread);
  if (thread == 0) {
    init_barrier(barrier, rank + 1);
    publish_barriers();
  }
  meet_cluster();
  if (thread >= rank && thread < cluster) arrive_at(barrier, thread);
  wait(barrier, 0);
  if (thread < cluster) {
    const float4 four = load_peer(reinterpret_cast<const float4*>(numbers), thread);
    const uint2 two = load_peer(reinterpret_cast<const uint2*>(numbers) + 1, thread);
    out[blockIdx.x * cluster + thread] =
        four.x + 1000 * __uint_as_float(two.y) + 1e6f * load_peer(numbers + 1, thread) + (four.w - __uint_as_float(two.y));
  }
  meet_cluster();
  if (thread == 0 && rank == 0) {
    wait_for_count(count, number);
    *sum = 2 * *sum + static_cast<float>(number);
    count_up(count);
  }
}

__global__ void widen_kernel(const uint32_t* fours, uint2* out) { out[threadIdx.x] = widen_e4m3(fours[threadIdx.x]); }

}  // namespace

extern "C" {
int boxes(const void* in, void* out, uint16_t* seen, const int* sizes, const int* start, int lines, int columns,
          int to_others) {
  const TensorMap from = map_of(in, sizes[0], sizes[1], sizes[2], sizes[3], lines, columns);
  const TensorMap to = map_of(out, sizes[0], sizes[1], sizes[2], sizes[3], lines, columns);
  return launch_clusters(boxes_kernel, dim3(4), dim3(32), 4, false, from.bytes() + 8, nullptr, from, to, seen,
                         Boxes{{start[0], start[1], start[2], start[3]}, to_others != 0});
}
int bytes(const float* in, float* out) { return launch(bytes_kernel, dim3(1), dim3(32), 72, nullptr, in, out); }
int product(int fp16, int columns, int a_transposed, int b_transposed, int registers, int line, const void* a,
            const void* b, float* d) {
  if (columns == 32)
    return (fp16 ? product_in<Dtype::float16, 32> : product_in<Dtype::bfloat16, 32>)(a_transposed, b_transposed,
                                                                                      registers, line, a, b, d);
  return product_in<Dtype::bfloat16, 256>(a_transposed, b_transposed, registers, line, a, b, d);
}
int meetings(int* out) { return launch(meet_kernel, dim3(1), dim3(256), 256, nullptr, out); }
int stored_matrices(const uint32_t* r, uint16_t* out) {
  return launch(matrices_kernel, dim3(1), dim3(32), 512, nullptr, r, out);
}
int widened(const uint32_t* fours, uint2* out) {
  return launch(widen_kernel, dim3(1), dim3(64), 0, nullptr, fours, out);
}
int clusters(float* out, unsigned* count, float* sum, int blocks, int cluster, int cooperative) {
  return launch_clusters(cluster_kernel, dim3(blocks), dim3(32), cluster, cooperative != 0, 24, nullptr, out, count, sum,
                         cluster);
}
int refused_map(const void* data, int64_t line_stride, int lines) {
  Matrices matrices;
  matrices.data = data;
  matrices.lines = 4, matrices.columns = 8, matrices.line_stride = line_stride;
  TensorMap map;
  return make_tensor_map(&map, matrices, lines);
}
}
