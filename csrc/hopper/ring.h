// Slots of shared memory in turn: one thread fills them with copies, warps read them and hand them back. Blocks of a
// cluster that want the same may share a ring: each copies a part to all of them.
#pragma once
#include "../device/chunks.h"
#include "ptx.h"

#if EMA_HOPPER
namespace ema {

// Everybody has one of his own, over the same barriers.
class Ring {
 public:
  int slot = 0;  // the one whose turn it is

  // `memory` holds 2 * `slots` barriers.
  EMA_DEVICE Ring(void* memory, int slots, int blocks = 1)
      : full_(static_cast<Barrier*>(memory)), empty_(full_ + slots), slots_(slots), blocks_(blocks) {}

  // By one thread, before the block or the cluster meets. A slot is handed back by `readers` warps of every block, and
  // `writers` of this one fill it beside the thread that copies.
  EMA_DEVICE void init(int readers, int writers = 0) {
    for (int i = 0; i < slots_; ++i) {
      init_barrier(&full_[i], 1 + writers);
      init_barrier(&empty_[i], blocks_ * readers);
    }
    publish_barriers();
  }

  // Waits until the slot may be filled with `bytes`, those from other blocks too; the barrier is for the copies.
  EMA_DEVICE Barrier* begin_fill(int bytes) {
    wait_until_empty();
    arrive_expecting(&full_[slot], bytes);
    return &full_[slot];
  }
  EMA_DEVICE void wait_until_empty() { wait(&empty_[slot], parity_ ^ 1); }
  // A warp has written its share of a slot.
  EMA_DEVICE void hand_over(int written) {
    if (lane() == 0) arrive(&full_[written]);
  }
  // Of this turn of the slot, for other barriers of the same turns.
  EMA_DEVICE uint32_t parity() const { return parity_; }
  EMA_DEVICE void wait_until_full() { wait(&full_[slot], parity_); }
  EMA_DEVICE void hand_back() {
    if (blocks_ > 1) {
      if (lane() < blocks_) arrive_at(&empty_[slot], lane());
    } else if (lane() == 0) {
      arrive(&empty_[slot]);
    }
  }
  // Behind the last fill, until all of them are handed back: nobody arrives at these barriers any more, nothing lands.
  EMA_DEVICE void drain() {
    for (int i = 0; i < slots_; ++i, advance()) wait_until_empty();
  }

  EMA_DEVICE void advance() {
    if (++slot < slots_) return;
    slot = 0;
    parity_ ^= 1;
  }

 private:
  Barrier *full_, *empty_;
  int slots_, blocks_;
  uint32_t parity_ = 0;
};

}  // namespace ema
#endif
