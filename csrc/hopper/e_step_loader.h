// How a warpgroup of the M-step brings its channels to the stages: by boxes, or line by line.
#pragma once
#include "any_rows.h"
#include "byte_rows.h"
#include "e_step_block.h"

#if EMA_HOPPER
namespace ema::hopper {

// By boxes; one thread of the warpgroup starts them.
template <class V, bool BOXED = V::ROWS == Rows::BOXED>
class EStepLoader {
 public:
  EMA_DEVICE EStepLoader(const EStepBlock<V>& block, const TensorMap& x_map, int group)
      : block_(block), x_map_(x_map), group_(group) {}

  // Before the first tile.
  EMA_DEVICE void start() const {
    for (int i = 0; i < block_.args.stages - 1; ++i) load(i, i);
    __syncwarp();
  }
  // The product of tile i has begun, and the warpgroup has met after that of the tile before.
  EMA_DEVICE void go_on(int i, int slot) const {
    const int stages = block_.args.stages;
    load(i + stages - 1, slot == 0 ? stages - 1 : slot - 1);
  }
  EMA_DEVICE void finish() const {}

 private:
  EMA_DEVICE void load(int i, int slot) const {
    constexpr int BOXES = V::CHANNELS / V::M_GROUPS / 64;
    if (group_thread() != 0 || i >= block_.count) return;
    arrive_expecting(block_.x_full + slot, BOXES * block_.stage(slot).BOX_BYTES);
    const int first = opaque(group_) * BOXES;  // addresses made before the loop would break the products' pipeline
    for (int box = first; box < first + BOXES; ++box)
      block_.stage(slot).copy(box, x_map_, block_.x_full + slot, block_.position(i), block_.head, block_.batch);
  }

  const EStepBlock<V>& block_;
  const TensorMap& x_map_;
  int group_;
};

// Line by line; all threads of the warpgroup take part. The map, if there is one, is that of a copy to be made on the way.
template <class V>
class EStepLoader<V, false> {
 public:
  EMA_DEVICE EStepLoader(const EStepBlock<V>& block, const TensorMap& x_map, int) : block_(block), x_map_(x_map) {}

  EMA_DEVICE void start() const {
    for (int i = 0; i < block_.args.stages; ++i) read(i, i);
    for (int i = 0; i < 2; ++i) shift(i, i);
  }
  // Tile i + 2 is shifted beside the product of tile i, and another one read in its place.
  EMA_DEVICE void go_on(int i, int slot) const {
    shift(i + 2, after(after(slot)));
    wait_for_products<0>();
    if (group_thread() == 0) wait_for_reads<2>();  // the stores of two tiles may go on
    meet(2 + group(), GROUP);
    read(i + block_.args.stages, slot);
  }
  EMA_DEVICE void finish() const {
    if (group_thread() == 0) wait_for_reads<0>();
  }

 private:
  static constexpr int WARPS = 4 * V::M_GROUPS;
  using Lines = std::conditional_t<V::ROWS == Rows::ANY, AnyRows<V, WARPS>, ByteRows<V, WARPS>>;

  EMA_DEVICE static int group() { return opaque(threadIdx.x) / GROUP - 1; }  // asked anew: a register less
  EMA_DEVICE int after(int slot) const { return slot + 1 == block_.args.stages ? 0 : slot + 1; }
  EMA_DEVICE Lines lines() const {
    const int warp = opaque(threadIdx.x) / 32 - 4;
    return {block_.args.io.x, block_.head, block_.batch, block_.args.positions, warp};
  }
  EMA_DEVICE void read(int i, int slot) const {
    // the last tile may need the first units of the one behind it
    if (i < block_.count + Lines::TILES_BEHIND)
      lines().read(block_.stage(slot).memory, block_.position(i), i < block_.count);
    copy_async_commit();
  }
  EMA_DEVICE void shift(int i, int slot) const {
    constexpr int BOXES = V::CHANNELS / V::M_GROUPS / 64;
    if (i >= block_.count) return;
    copy_async_wait(block_.args.stages - 3 - Lines::TILES_BEHIND);  // those of all tiles that it needs have come
    __syncwarp();
    lines().shift(block_.stage(slot).memory, block_.stage(after(slot)).memory);
    fence_copies();
    meet(2 + group(), GROUP);
    if (group_thread() != 0) return;
    arrive(block_.x_full + slot);
    if (V::ROWS != Rows::ANY || block_.args.io.copy.data == nullptr) return;
    const int first = group() * BOXES;
    for (int box = first; box < first + BOXES; ++box)
      block_.stage(slot).store(box, x_map_, block_.position(i), block_.head, block_.batch);
    commit_stores();
  }

  const EStepBlock<V>& block_;
  const TensorMap& x_map_;
};

}  // namespace ema::hopper
#endif
