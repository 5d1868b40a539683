// 32 positions of features in shared memory, in boxes of 64 channels, and the products that read them. Lines of a box are
// positions with 64 channels or, with positions fastest, channels with 32 positions.
#pragma once
#include "../device/math.h"
#include "hopper.h"
#include "ptx.h"

namespace ema::hopper {

// What the kernels that read features are compiled for.
template <class Math_, int CHANNELS_, bool POSITIONS_FASTEST_>
struct FeatureKind {
  using Math = Math_;
  static constexpr int CHANNELS = CHANNELS_;
  static constexpr bool POSITIONS_FASTEST = POSITIONS_FASTEST_;
};

// Calls `run` with the kind of features of CHANNELS padded channels.
template <int CHANNELS, class Run>
cudaError_t with_kind_of(const Problem& problem, Run run) {
  return with_half_math(problem, [&](auto math) {
    using Math = decltype(math);
    return problem.positions_fastest ? run(FeatureKind<Math, CHANNELS, true>{})
                                     : run(FeatureKind<Math, CHANNELS, false>{});
  });
}
template <class Run>
cudaError_t with_kind(const Problem& problem, int channels, Run run) {
  switch (compiled_channels(channels)) {
    case 64: return with_kind_of<64>(problem, run);
    case 128: return with_kind_of<128>(problem, run);
    case 256: return with_kind_of<256>(problem, run);
    default: return with_kind_of<E_STEP_CHANNELS>(problem, run);
  }
}

// The map that a tile is copied by.
inline cudaError_t make_tile_map(TensorMap* map, const Problem& problem, const Features& features) {
  const Matrices matrices = as_matrices(problem, features);
  return problem.positions_fastest ? make_tensor_map(map, matrices, 64, TILE_POSITIONS)
                                   : make_tensor_map(map, matrices, TILE_POSITIONS);
}

#if EMA_HOPPER
template <class Kind>
struct FeatureTile {
  static constexpr Dtype DTYPE = Kind::Math::DTYPE;
  static constexpr int CHANNELS = Kind::CHANNELS;
  static constexpr bool POSITIONS_FASTEST = Kind::POSITIONS_FASTEST;
  static constexpr int BOXES = CHANNELS / 64, BOX_BYTES = TILE_POSITIONS * 128, ROWS_BOX_BYTES = 64 * 128;
  static constexpr int LINE = POSITIONS_FASTEST ? 2 * TILE_POSITIONS : 128;
  unsigned char* memory;

  EMA_DEVICE void copy(int box, const TensorMap& map, Barrier* full, int position, int head, int batch) const {
    const int channel = 64 * box;
    copy_box(memory + box * BOX_BYTES, map, full, POSITIONS_FASTEST ? position : channel,
             POSITIONS_FASTEST ? channel : position, head, batch);
  }
  EMA_DEVICE void store(int box, const TensorMap& map, int position, int head, int batch) const {
    const int channel = 64 * box;
    store_box(map, memory + box * BOX_BYTES, POSITIONS_FASTEST ? position : channel,
              POSITIONS_FASTEST ? channel : position, head, batch);
  }

  // d = rows features^T, [64 bases, 32 positions]; rows in boxes [64 bases][64 channels].
  EMA_DEVICE void multiply_rows(float (&d)[TILE_POSITIONS / 2], const unsigned char* rows) const {
    // the operands of all steps are computed for every tile: kept from tile to tile they would not fit the registers
    const Operand left = make_operand(rows + opaque(0), 0, 1024);
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; ++k)
      multiply_group<DTYPE, TILE_POSITIONS, false, POSITIONS_FASTEST>(
          d, moved(left, k / 4 * ROWS_BOX_BYTES + k % 4 * 32), step(k), k > 0);
  }

  // d += rows features^T, rows in registers.
  EMA_DEVICE void add_rows(float (&d)[TILE_POSITIONS / 2], const uint32_t (&rows)[CHANNELS / 16][4]) const {
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; ++k)
      multiply_group<DTYPE, TILE_POSITIONS, POSITIONS_FASTEST>(d, rows[k], step(k), true);
  }

  // sums += z^T features, of the channels from those of `box` on; z [32 positions][64 bases], or its lines are bases.
  template <int COLUMNS, bool BASE_LINES = false>
  EMA_DEVICE void add_sums(float (&sums)[COLUMNS / 2], const unsigned char* z, int box) const {
    const Operand left = make_operand(z, 0, 1024);
    const Operand right = make_operand(memory + box * BOX_BYTES, BOX_BYTES, 8 * LINE, LINE);
#pragma unroll
    for (int k = 0; k < TILE_POSITIONS / 16; ++k)
      multiply_group<DTYPE, COLUMNS, !BASE_LINES, !POSITIONS_FASTEST>(
          sums, moved(left, BASE_LINES ? 32 * k : 2048 * k), moved(right, POSITIONS_FASTEST ? 32 * k : 2048 * k), true);
  }

 private:
  // 16 channels of all positions.
  EMA_DEVICE Operand step(int k) const {
    return moved(make_operand(memory, 0, 8 * LINE, LINE),
                 POSITIONS_FASTEST ? k * 16 * LINE : k / 4 * BOX_BYTES + k % 4 * 32);
  }
};
#endif

}  // namespace ema::hopper
