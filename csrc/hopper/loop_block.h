// What the parts of the whole loop in one launch (em_loop.cu) agree on.
//
// A cluster of blocks, or several of them, works on one image; a block on neighbouring positions of it. Of its three
// warpgroups the first makes responsibilities, and the other two do the rest, each for one half of the channels.
#pragma once
#include "../device/chunks.h"
#include "em_loop.h"
#include "feature_tile.h"
#include "group_tile.h"

namespace ema::hopper {

struct LoopArgs {
  EmLoop io;
  LoopPlan plan;
  int heads, positions, channels, num_bases, num_iters;
  float scale, eps;
  bool eps_max;
};

struct LoopMaps {
  TensorMap x, y, y_lines;     // 32 positions, 64, and 8 unless positions are fastest
  TensorMap first_rows, rows;  // the bases of one block of a cluster: before the loop, and new ones
};

constexpr int WIDE_PANEL = 64 * CHUNK_BYTES;  // 64 channels of 64 lines
constexpr int LOOP_TILE = TILE_POSITIONS, Z_PAIR_BYTES = 64 * CHUNK_BYTES;  // positions of a stage; responsibilities of two stages

// Numbers of shared memory behind the stages: masses, factors of the staged sums, two exchanges, one for every warp.
constexpr int LOOP_NUMBERS = 64 + 2 * 64 + 2 * 4 * LOOP_TILE + 16;

template <class Kind>
struct LoopShape : Kind {
  static constexpr int WIDTH = Kind::CHANNELS, HALF = WIDTH / 2, PANELS = WIDTH / 64;  // channels; 64 of them are a panel
  static constexpr int STAGES = WIDTH == 512 ? 6 : 8, STAGE_BYTES = LOOP_TILE * WIDTH * 2;
  // The last two stages turn into the staged sums, the two before them into the bases: 64 rows of 2 bytes a channel.
  static constexpr int SUM_STAGE = STAGES - 2, BASES_STAGE = STAGES - 4;
  static constexpr int BARRIERS = 2 * STAGES + STAGES / 2 + 2;
  static constexpr int BYTES = STAGES * STAGE_BYTES + STAGES / 2 * Z_PAIR_BYTES + LOOP_NUMBERS * 4 + BARRIERS * 8;
};

#if EMA_HOPPER
// Which thread meets whom; barrier 0 is the block's.
enum Meeting { E_STEP_MEETS = 1, BOTH_HALVES_MEET = 2, HALF_MEETS = 3 };  // and 4 for the second half

template <class Shape>
struct LoopBlock {
  unsigned char *stages, *z;
  float *masses, *factors, *maxima, *totals, *lengths;
  Barrier *stage_full, *z_full, *z_loaded, *bases_full, *bases_taken;
  int rank, cluster, image, head, batch;  // `cluster` of those of the image
  int first, positions, tiles;            // of this block

  EMA_DEVICE LoopBlock(unsigned char* shared, const LoopArgs& args) {
    stages = shared;
    z = stages + Shape::STAGES * Shape::STAGE_BYTES;
    masses = reinterpret_cast<float*>(z + Shape::STAGES / 2 * Z_PAIR_BYTES);
    factors = masses + 64;
    maxima = factors + 128;
    totals = maxima + 4 * LOOP_TILE;
    lengths = totals + 4 * LOOP_TILE;
    stage_full = reinterpret_cast<Barrier*>(lengths + 16);
    z_full = stage_full + Shape::STAGES;
    z_loaded = z_full + Shape::STAGES;
    bases_full = z_loaded + Shape::STAGES / 2;
    bases_taken = bases_full + 1;
    rank = cluster_rank();
    // every part asks anew, or what all have in common would be spilled
    const int number = opaque(blockIdx.x) / args.plan.cluster;
    cluster = number % args.plan.clusters;
    image = number / args.plan.clusters;
    head = image % args.heads;
    batch = image / args.heads;
    const int64_t start = int64_t{cluster * args.plan.cluster + rank} * args.plan.positions;
    first = static_cast<int>(min(start, int64_t{args.positions}));
    positions = min(args.positions - first, args.plan.positions);
    tiles = (positions + LOOP_TILE - 1) / LOOP_TILE;
  }

  EMA_DEVICE void init() const {
    for (int i = 0; i < Shape::STAGES; ++i) {
      init_barrier(&stage_full[i], 2);
      init_barrier(&z_full[i], GROUP_WARPS);
    }
    for (int i = 0; i < Shape::STAGES / 2; ++i) init_barrier(&z_loaded[i], 2);
    init_barrier(bases_full, 1);
    init_barrier(bases_taken, GROUP_WARPS);
    publish_barriers();
  }

  EMA_DEVICE unsigned char* stage(int i) const { return stages + i * Shape::STAGE_BYTES; }
  EMA_DEVICE FeatureTile<Shape> features(int i) const { return {stage(i)}; }
  EMA_DEVICE unsigned char* bases() const { return stage(Shape::BASES_STAGE); }
  // [64 bases, 64 positions] of stages 2 i and 2 i + 1.
  EMA_DEVICE unsigned char* z_pair(int i) const { return z + i * Z_PAIR_BYTES; }
  EMA_DEVICE Tile<uint16_t, Shape::WIDTH> sums() const { return {stage(Shape::SUM_STAGE)}; }

  // The tile that iteration t visits as number i: there and back, so that what was read last is read first; the last
  // iteration goes forward, for the reconstruction does.
  EMA_DEVICE int tile(int i, int t, int num_iters) const { return (num_iters - 1 - t) & 1 ? tiles - 1 - i : i; }

  // Where the last responsibilities of this block wait for the reconstruction.
  EMA_DEVICE unsigned char* stored_pair(const LoopArgs& args, int i) const {
    const int pairs = (args.plan.positions + 63) / 64;
    return static_cast<unsigned char*>(args.io.responsibilities) + (int64_t{blockIdx.x} * pairs + i) * Z_PAIR_BYTES;
  }
};

// Parities of barriers in turn, a bit for each.
struct Parities {
  uint32_t bits = 0;
  EMA_DEVICE void wait_for(Barrier* barriers, int i) {
    wait(&barriers[i], bits >> i & 1);
    bits ^= 1u << i;
  }
  // Two barriers of the same turn.
  EMA_DEVICE void wait_for(Barrier* barriers, Barrier* others, int i) {
    wait(&barriers[i], bits >> i & 1);
    wait_for(others, i);
  }
};
#endif

}  // namespace ema::hopper
