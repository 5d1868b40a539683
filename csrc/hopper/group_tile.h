// 64 bases by 32 positions in the registers of a warpgroup, as its product leaves them (ptx.h). A thread has 8 positions
// of two bases: at(c) of the first one, at(c) + 2 of the one 8 further.
#pragma once
#include "../device/math.h"
#include "../kernels/kernels.h"
#include "ptx.h"

namespace ema::hopper {

constexpr int GROUP = 128, GROUP_WARPS = GROUP / 32;  // threads and warps of a warpgroup

EMA_DEVICE int group_thread() { return threadIdx.x % GROUP; }
EMA_DEVICE int first_base() { return group_thread() / 32 * 16 + lane() / 4; }

// One arrival of the warp, for what all of its threads have done before.
EMA_DEVICE void arrive_as_warp(Barrier* barrier) {
  __syncwarp();
  if (opaque(threadIdx.x) % 32 == 0) arrive(barrier);  // made anew each time: there is no register for it
}

// Where position c of a thread is in its registers, and which one of the 32 it is.
EMA_DEVICE constexpr int at(int c) { return c / 2 * 4 + c % 2; }
EMA_DEVICE int position_of(int c, int thread = threadIdx.x) { return c / 2 * 8 + thread % 4 * 2 + c % 2; }

// Rows [G, 64, width] of the bases of an image as left operands, STEPS of 16 channels; 0 beyond the width.
template <int STEPS>
EMA_DEVICE void load_rows(uint32_t (&rows)[STEPS][4], const void* all, int image, int width) {
  const uint16_t* row = static_cast<const uint16_t*>(all) + (static_cast<int64_t>(image) * 64 + first_base()) * width;
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int channel = 16 * k + e / 2 * 8 + lane() % 4 * 2;
      rows[k][e] = channel < width ? *reinterpret_cast<const uint32_t*>(row + e % 2 * 8 * width + channel) : 0;
    }
}

// Combines the 8 positions of a thread over the 16 bases of its warp; memory [32 positions][4 warps] gets them.
template <class Combine>
EMA_DEVICE void share_positions(float (&values)[8], float* memory, Combine combine) {
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    // half of the lanes go on with the upper positions, the others with the lower ones
    const bool upper = (lane() & 4 * half) != 0;
#pragma unroll
    for (int c = 0; c < half; ++c) {
      const float mine = upper ? values[c + half] : values[c], other = upper ? values[c] : values[c + half];
      values[c] = combine(mine, __shfl_xor_sync(~0u, other, 4 * half));
    }
  }
  const int thread = opaque(threadIdx.x) % GROUP;  // made anew each time: there is no register for the address
  memory[position_of(thread % 32 / 4, thread) * 4 + thread / 32] = values[0];
}

// Position c of that memory, combined over the warps.
template <class Combine>
EMA_DEVICE float shared_position(const float* memory, int c, Combine combine) {
  const float4 parts = *reinterpret_cast<const float4*>(memory + position_of(c) * 4);
  return combine(combine(parts.x, parts.y), combine(parts.z, parts.w));
}

// Logits become responsibilities, times RESPONSIBILITY_SCALE. Bases that are not `real` get 0; their logits are -inf.
// Two memories as above, and a barrier where the warps meet.
template <class Math>
EMA_DEVICE void respond_to(float (&z)[16], const bool (&real)[2], float* maxima, float* totals, int barrier) {
  auto larger = [](float a, float b) { return fmaxf(a, b); };
  auto added = [](float a, float b) { return a + b; };
  float values[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) values[c] = fmaxf(z[at(c)], z[at(c) + 2]);
  share_positions(values, maxima, larger);
  meet(barrier, GROUP);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float maximum = shared_position(maxima, c, larger);
    z[at(c)] = real[0] ? Math::exponential(z[at(c)] - maximum) : 0.f;
    z[at(c) + 2] = real[1] ? Math::exponential(z[at(c) + 2] - maximum) : 0.f;
    values[c] = z[at(c)] + z[at(c) + 2];
  }
  share_positions(values, totals, added);
  meet(barrier, GROUP);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float factor = RESPONSIBILITY_SCALE * reciprocal_approximate(shared_position(totals, c, added));
    z[at(c)] *= factor, z[at(c) + 2] *= factor;
  }
}

// Times the weights of the positions, of which every lane has one; masses of both bases of a thread.
EMA_DEVICE void weigh(float (&z)[16], float weight, float (&masses)[2]) {
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float factor = __shfl_sync(~0u, weight, position_of(c));
    masses[0] += z[at(c)] *= factor;
    masses[1] += z[at(c) + 2] *= factor;
  }
}

template <class Math>
EMA_DEVICE uint32_t round_pair(float first, float second) {
  return Math::round(first) | static_cast<uint32_t>(Math::round(second)) << 16;
}
template <class Math>
EMA_DEVICE uint32_t saturate_pair(float first, float second) {
  return round_pair<Math>(Math::saturate(first), Math::saturate(second));
}

// To a tile [32 positions][64 bases].
template <class Math>
EMA_DEVICE void store_positions(const float (&z)[16], const Tile<uint16_t, 64>& tile) {
  const int l = lane(), line = l % 8 + l / 16 * 8, base = group_thread() / 32 * 16 + l / 8 % 2 * 8;
#pragma unroll
  for (int i = 0; i < 16; i += 8) {
    const uint32_t matrices[4] = {saturate_pair<Math>(z[i], z[i + 1]), saturate_pair<Math>(z[i + 2], z[i + 3]),
                                  saturate_pair<Math>(z[i + 4], z[i + 5]), saturate_pair<Math>(z[i + 6], z[i + 7])};
    store_matrices_transposed(tile.at(2 * i + line, base), matrices);
  }
}

}  // namespace ema::hopper
