// A tile of positions by bases in the registers of a block: 4 x ACROSS warps, each 16 positions by 8 * BLOCKS bases.
#pragma once
#include "chunks.h"

namespace ema {

template <int BLOCKS_, int ACROSS_>
struct RowBlock {
  static constexpr int BLOCKS = BLOCKS_, ACROSS = ACROSS_;
  static constexpr int THREADS = 128 * ACROSS;
  static constexpr int BASES = 8 * BLOCKS * ACROSS;                           // of the whole block
  static constexpr int STATISTICS = 2 * ACROSS * TILE, MASSES = 4 * BASES;  // numbers in shared memory
  int row, column, blocks, num_bases;            // `blocks` of 8 bases from `column` on hold any of the num_bases

  EMA_DEVICE explicit RowBlock(int num_bases)
      : row(warp() / ACROSS * 16), column(warp() % ACROSS * 8 * BLOCKS), num_bases(num_bases) {
    int left = (num_bases - column + 7) / 8;
    blocks = left < 0 ? 0 : left < BLOCKS ? left : BLOCKS;
  }

  // The base of element e of block j.
  EMA_DEVICE int base(int j, int e) const { return column + 8 * j + lane() % 4 * 2 + e % 2; }

  // Calls body(j, e, value) with the number of every base of a thread, for e = 0, 1 of block j: those of [K] or [Kp].
  template <class Body>
  EMA_DEVICE void for_bases(const float* values, Body body) const {
    values += base(0, 0);
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (base(j, e) < num_bases) body(j, e, values[8 * j + e]);
  }

  EMA_DEVICE void add_bias(float (&logits)[BLOCKS][4], const float* bias) const {
    for_bases(bias, [&](int j, int e, float value) { logits[j][e] += value, logits[j][e + 2] += value; });
  }

  // To [G, N, Kp]; `position` is that of element 0.
  template <class Math>
  EMA_DEVICE void store(const float (&z)[BLOCKS][4], void* target, int image, int position, int positions,
                        int padded) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int n = position + 8 * half;
      if (n >= positions) continue;
      auto* line = static_cast<typename Math::Word*>(target) + (static_cast<int64_t>(image) * positions + n) * padded;
#pragma unroll
      for (int j = 0; j < BLOCKS; ++j)
        if (base(j, 0) < padded) store_pair<Math>(line + base(j, 0), z[j][2 * half], z[j][2 * half + 1]);
    }
  }

  template <class Math>
  EMA_DEVICE void store_tile(const float (&z)[BLOCKS][4], const Tile<uint16_t, 64>& tile) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < BLOCKS; ++j)
        store_pair<Math>(tile.at(row + lane() / 4 + 8 * half, base(j, 0)), z[j][2 * half], z[j][2 * half + 1]);
  }

 private:
  template <class Math>
  EMA_DEVICE static void store_pair(typename Math::Word* target, float first, float second) {
    uint32_t a = Math::round(Math::saturate(first)), b = Math::round(Math::saturate(second));
    if constexpr (sizeof(*target) == 2)
      *reinterpret_cast<uint32_t*>(target) = a | b << 16;
    else
      *reinterpret_cast<uint2*>(target) = make_uint2(a, b);
  }
};

// The block for up to SMALL_BASES bases, and the one for up to 256: as many warps as keep a row in registers.
using SmallBlock = RowBlock<4, 2>;
using LargeBlock = RowBlock<8, 4>;
template <class Block>
constexpr int BLOCK_BYTES = (Block::STATISTICS + Block::MASSES) * static_cast<int>(sizeof(float));
static_assert(SmallBlock::BASES == SMALL_BASES, "the plan counts on another size");
static_assert(BLOCK_BYTES<SmallBlock> == SMALL_BLOCK_BYTES, "the plan counts on other shared memory");
static_assert(BLOCK_BYTES<LargeBlock> == LARGE_BLOCK_BYTES, "the plan counts on other shared memory");

// For both rows of a thread: values[half] combined over the whole row, which ACROSS warps share. `memory` holds
// [ACROSS, TILE] numbers and is free again after the next barrier.
template <class Block, class Combine>
EMA_DEVICE void combine_rows(float (&values)[2], const Block& block, float* memory, Combine combine) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    values[half] = combine(values[half], __shfl_xor_sync(~0u, values[half], 1));
    values[half] = combine(values[half], __shfl_xor_sync(~0u, values[half], 2));
    if (lane() % 4 == 0) memory[warp() % Block::ACROSS * TILE + block.row + lane() / 4 + 8 * half] = values[half];
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = block.row + lane() / 4 + 8 * half;
    values[half] = memory[row];
#pragma unroll
    for (int i = 1; i < Block::ACROSS; ++i) values[half] = combine(values[half], memory[i * TILE + row]);
  }
}

// Softmax over the bases, times `scale`; 0 beyond them. `memory` holds Block::STATISTICS numbers.
template <class Math, class Block>
EMA_DEVICE void softmax(float (&z)[Block::BLOCKS][4], const Block& block, float scale, float* memory) {
  float maxima[2] = {-INFINITY, -INFINITY}, partial[4] = {};
#pragma unroll
  for (int j = 0; j < Block::BLOCKS; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (block.base(j, e) < block.num_bases) maxima[e / 2] = fmaxf(maxima[e / 2], z[j][e]);
  combine_rows(maxima, block, memory, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
  for (int j = 0; j < Block::BLOCKS; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      z[j][e] = block.base(j, e) < block.num_bases ? Math::exponential(z[j][e] - maxima[e / 2]) : 0.f;
      partial[e] += z[j][e];
    }
  float sums[2] = {partial[0] + partial[1], partial[2] + partial[3]};
  combine_rows(sums, block, memory + Block::STATISTICS / 2, [](float a, float b) { return a + b; });
#pragma unroll
  for (int half = 0; half < 2; ++half) sums[half] = scale / sums[half];
#pragma unroll
  for (int j = 0; j < Block::BLOCKS; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) z[j][e] *= sums[e / 2];
}

// Sums of 64 bases by 64 channels of a warp to a slot [Kp, Cp] of float32.
EMA_DEVICE void store_sums(const float (&sums)[4][8][4], float* slot, int width, int base, int channel) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int k = base + 16 * i + lane() / 4 + 8 * half, c = channel + 8 * j + lane() % 4 * 2;
        *reinterpret_cast<float2*>(slot + static_cast<int64_t>(k) * width + c) =
            make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      }
}

// Sums over the positions of a block for every base, in shared memory: a line of bases for each 4 warps of positions.
// A number belongs to one thread, which adds to it tile after tile.
template <class Block>
struct Masses {
  float* memory;

  EMA_DEVICE explicit Masses(float* memory) : memory(memory) {
    for (int i = threadIdx.x; i < Block::MASSES; i += Block::THREADS) memory[i] = 0;
    __syncthreads();
  }

  EMA_DEVICE void add(const float (&z)[Block::BLOCKS][4], const Block& block) {
#pragma unroll
    for (int j = 0; j < Block::BLOCKS; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float mass = z[j][e] + z[j][e + 2];
#pragma unroll
        for (int other = 4; other < 32; other *= 2) mass += __shfl_xor_sync(~0u, mass, other);
        if (lane() < 4) memory[block.row / 16 * Block::BASES + block.base(j, e)] += mass;
      }
  }

  // To a slot [Kp].
  EMA_DEVICE void store(float* slot, int padded) const {
    __syncthreads();
    for (int k = threadIdx.x; k < padded; k += Block::THREADS) {
      float total = 0;
      for (int i = 0; i < 4; ++i) total += memory[i * Block::BASES + k];
      slot[k] = total;
    }
  }
};

// What e_step and e_step_gradient are compiled for.
template <class Math_, bool POSITIONS_FASTEST_, class Block_, bool FUSED_>
struct Variant {
  using Math = Math_;
  using Block = Block_;
  static constexpr bool POSITIONS_FASTEST = POSITIONS_FASTEST_, FUSED = FUSED_;
};

// Calls `run` with the variant of the problem and the plan.
template <class Run>
cudaError_t with_variant(const Problem& problem, const EStepPlan& plan, Run run) {
  return with_math(problem, [&](auto math) {
    using Math = decltype(math);
    auto in_order = [&](auto order) {
      constexpr bool POSITIONS_FASTEST = decltype(order)::value;
      if constexpr (sizeof(typename Math::Word) == 2)
        if (plan.fused) return run(Variant<Math, POSITIONS_FASTEST, SmallBlock, true>{});
      return problem.num_bases <= SMALL_BASES ? run(Variant<Math, POSITIONS_FASTEST, SmallBlock, false>{})
                                              : run(Variant<Math, POSITIONS_FASTEST, LargeBlock, false>{});
    };
    return problem.positions_fastest ? in_order(std::true_type{}) : in_order(std::false_type{});
  });
}

}  // namespace ema
