// How a problem will be launched: a pure function of its shape and of the device.
#pragma once
#include "problem.h"

namespace ema {

struct Device {
  int multiprocessors = 108;
  int shared_memory = 163 << 10;  // bytes that one block may use
  bool hopper = false;            // has what csrc/hopper needs, and it is wanted
  bool overlap = false;           // may start a kernel before the one in front of it has ended, and it is wanted
  bool one_launch = false;        // has what csrc/hopper needs, and the whole loop is wanted in one launch
  bool by_default = false;        // nobody asked: of these three, what hopper/defaults.h turns on
};

constexpr int TILE = 64;          // positions of a tile
constexpr int CHUNK_BYTES = 128;  // of a row of features or bases: what goes through shared memory at once
constexpr int WEIGHT_PARTS = 32;  // of an image, in each of which the largest weight is looked for

// Up to SMALL_BASES bases a block has 8 warps, above 16. Bytes of shared memory for what it knows of rows and bases:
constexpr int SMALL_BASES = 64, SMALL_BLOCK_BYTES = 2048, LARGE_BLOCK_BYTES = 6144;

// Launch of e_step and e_step_gradient: one block per image and split, tile after tile.
struct EStepPlan {
  int splits = 1;
  bool fused = false;     // features stay on chip for the M-step
  int feature_slots = 2;  // chunks of features in shared memory; all of a tile and more when fused; hopper: stages
  int row_slots = 2;      // chunks of bases in shared memory
  bool rows_resident = false;  // all chunks of bases are loaded once
  int shared_memory = 0;  // bytes
  bool hopper = false;    // by the kernels of csrc/hopper
  bool half_slots = false;  // the partial sums of a fused M-step are float16 (device/half_slot.h)
};

struct MStepPlan {
  int splits = 1;
  int slots = 1;          // tiles in shared memory
  int shared_memory = 0;  // bytes
  bool hopper = false;    // by the kernels of csrc/hopper
  bool half_slots = false;  // partial sums are float16 (device/half_slot.h)
};

// Launch of rank_k_products: only csrc/hopper has something to choose.
struct ProductsPlan {
  bool hopper = false;    // by the kernels of csrc/hopper
  int splits = 1;         // of the positions of an image
  int slots = 1;          // left operands in shared memory, with the right ones unless those stay
  bool resident = false;  // all right operands stay in shared memory
  int shared_memory = 0;  // bytes
  int cluster = 1;        // blocks, with neighbouring channels, that share their left operands
};

// Launch of unit_tail: one block for every tile and OUTPUT_BYTES of its channels. By csrc/hopper: a cluster for every
// split, of one block or of two that share what they load.
constexpr int OUTPUT_BYTES = 512;
struct UnitTailPlan {
  int slots = 1;          // pieces of bases and of the weight in shared memory
  int shared_memory = 0;  // bytes
  bool hopper = false;    // by the kernels of csrc/hopper
  bool any_rows = false;  // with positions fastest, of x or y that cannot be boxed
  int splits = 1;
  int cluster = 1;        // blocks
};

// The whole loop in one launch (hopper/em_loop.cu): for every image some clusters of blocks, each with its positions.
struct LoopPlan {
  bool one_launch = false;
  int cluster = 1;    // blocks, up to 16, a power of two
  int clusters = 1;   // of an image
  int positions = 0;  // of a block, a multiple of 8
};

// What an E-step or its gradient does beside its responsibilities.
struct EStepWork {
  bool m_step = false;      // an M-step follows: fused where it fits
  bool has_sums = false;    // e_step_gradient: there are sums_rows
  bool has_values = false;  // e_step_gradient: there are value_rows
};

EStepPlan plan_e_step(const Problem&, const Device&, const EStepWork&);
MStepPlan plan_m_step(const Problem&, int channels, const Device&);
ProductsPlan plan_products(const Problem&, int products, int channels, const Device&);
UnitTailPlan plan_unit_tail(const Problem&, const Device&);
LoopPlan plan_loop(const Problem&, const Device&);

// Every launch that the entry points need.
struct Plan {
  LoopPlan loop;              // forward, in place of its iterations and its reconstruction
  EStepPlan e_step;           // responsibilities alone
  EStepPlan iteration;        // E-step before an M-step
  EStepPlan gradient;         // of an iteration, before an M-step
  EStepPlan first_gradient;   // of an iteration whose bases need no gradient
  EStepPlan last_gradient;    // of the iteration before the reconstruction
  EStepPlan value_gradient;   // of a reconstruction alone
  MStepPlan m_step;           // of features of C channels
  MStepPlan value_m_step;     // of features of Cv channels
  MStepPlan reconstruct_gradient;  // hopper: responsibilities, value_m_step and products for the gradients with values
  MStepPlan rows_gradient;  // hopper: in place of reconstruct_gradient, of rows that start anywhere
  ProductsPlan reconstruction;  // one product of Cv channels
  ProductsPlan grad_x;          // two products for every iteration
  ProductsPlan value_grad_x;    // of a reconstruction alone: one product
  UnitTailPlan unit_tail;
  bool copies = false;        // features that cannot be boxed are copied to aligned rows first, for csrc/hopper
  bool any_rows = false;      // they are not: e_step and rows_gradient of csrc/hopper read them as they are
  bool eight_bits = false;    // em_forward and em_attend read x of 8 bits as it is, by e_step of csrc/hopper
  bool end_iteration = false;  // by csrc/hopper in one launch, behind a folded convolution
  bool overlap = false;       // kernels start before those in front of them have ended
};
Plan make_plan(const Problem&, const Device&);

}  // namespace ema
