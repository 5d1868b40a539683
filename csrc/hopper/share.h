// What a block, or a cluster, works on: a group of channels of an image, and a share of the tiles of its positions.
#pragma once
#include "../device/chunks.h"

namespace ema::hopper {

// Neighbouring blocks have the same positions and meet their other operand in L2.
struct Share {
  int channel, split, head, batch;  // the first channel of the group
  TileRange tiles;

  EMA_DEVICE Share(int groups, int width, int splits, int heads, int positions, int tile, int cluster = 1)
      : channel(blockIdx.x / cluster % groups * width),
        split(blockIdx.x / cluster / groups % splits),
        head(blockIdx.x / cluster / groups / splits % heads),
        batch(blockIdx.x / cluster / groups / splits / heads),
        tiles(positions, splits, split, tile) {}
};

}  // namespace ema::hopper
