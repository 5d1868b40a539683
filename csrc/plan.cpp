#include "plan.h"

#include <algorithm>

#include "hopper/defaults.h"
#include "hopper/em_loop.h"
#include "hopper/gradient_layout.h"

namespace ema {
namespace {

constexpr int FEATURE_BYTES = TILE * CHUNK_BYTES;
constexpr int Z_BYTES = TILE * CHUNK_BYTES;      // 64 responsibilities of a tile, for the fused M-step
constexpr int RESERVED_BYTES = 1024;             // what CUDA takes of the shared memory for every block
constexpr int MAX_SLOTS = 3;                     // of a pipeline whose stages are used once
constexpr int HOPPER_SHARED_MEMORY = 227 << 10;  // that its kernels count on
constexpr int BOX_SLOTS = 6;                     // of a ring of boxes
constexpr int BARRIER_BYTES = 128;               // of such a ring: two for every slot
constexpr int FLOAT32_TILES = 8;                 // of a split of an M-step, added one position after the other
constexpr int FUSED_CHUNKS = 8;                  // one for every warp of a small block
constexpr double FED_BY_L2 = 0.6;                // of the multiprocessors (benchmarks/hopper/model.py)

int64_t ceil_div(int64_t numerator, int64_t denominator) { return (numerator + denominator - 1) / denominator; }

int64_t slot_bytes(const Problem& problem, int channels, bool half) {
  const int bases = padded_bases(problem.num_bases), width = padded_channels(channels);
  return 4 * (half ? half_slot_words(bases, width) : int64_t{bases} * width);
}

// Bytes that decide how the tiles of every image are split between blocks.
struct SplitCost {
  int64_t works;        // independent pieces of work, each over all tiles: images times groups of channels
  int64_t tiles;
  int64_t tile_bytes;   // read for a tile
  int64_t block_bytes;  // read once by a block
  int64_t slot_bytes;   // partial sums of a block, written once and read once
  int blocks;           // that run at the same time
  int multiprocessors;

  // What one multiprocessor moves: its waves of blocks, and its share of all slots.
  double of(int64_t splits) const {
    int64_t waves = ceil_div(works * splits, blocks);
    return static_cast<double>(waves * (ceil_div(tiles, splits) * tile_bytes + block_bytes)) +
           2.0 * static_cast<double>(works * splits * slot_bytes) / multiprocessors;
  }

  int best() const {
    int64_t most = std::min(tiles, std::max<int64_t>(1, 2 * blocks / works)), best = 1;
    for (int64_t splits = 2; splits <= most; ++splits)
      if (of(splits) < of(best)) best = splits;
    return static_cast<int>(best);
  }
};

// What the kernels of csrc/hopper ask for.
bool fits_hopper(const Problem& problem, const Device& device) {
  return device.shared_memory >= HOPPER_SHARED_MEMORY && problem.boxed && element_size(problem.dtype) == 2 &&
         problem.num_bases <= SMALL_BASES;
}
bool for_hopper(const Problem& problem, const Device& device) {
  return device.hopper && fits_hopper(problem, device);
}

int chunk_elements(const Problem& problem) { return CHUNK_BYTES / element_size(problem.dtype); }
bool is_small(const Problem& problem) { return problem.num_bases <= SMALL_BASES; }
int rows_tile(const Problem& problem) { return is_small(problem) ? 64 : 256; }
int statistics_bytes(const Problem& problem) { return is_small(problem) ? SMALL_BLOCK_BYTES : LARGE_BLOCK_BYTES; }
int64_t tile_count(const Problem& problem) { return ceil_div(problem.positions, TILE); }

// The slots of a fused E-step, features of a whole tile and as many of the next ones as fit; false if none do.
bool fuse(EStepPlan& plan, const Problem& problem, int chunks, int row_bytes, const Device& device) {
  const int rest = Z_BYTES + statistics_bytes(problem);
  for (int row_slots : {chunks, std::min(chunks, 4), std::min(chunks, 2)}) {
    int left = device.shared_memory - row_slots * row_bytes - rest;
    if (left < chunks * FEATURE_BYTES) continue;
    plan.fused = true;
    plan.feature_slots = std::min(left / FEATURE_BYTES, std::max(2 * chunks, 2 * MAX_SLOTS));
    plan.row_slots = row_slots;
    plan.rows_resident = row_slots == chunks;
    plan.shared_memory = plan.feature_slots * FEATURE_BYTES + row_slots * row_bytes + rest;
    return true;
  }
  return false;
}

// An E-step, alone or with the M-step, by boxes; false if there is no such kernel for it.
bool use_boxes(EStepPlan& plan, const Problem& problem, const EStepWork& work, const Device& device) {
  if (!for_hopper(problem, device) || problem.channels > hopper::E_STEP_CHANNELS || work.has_sums || work.has_values)
    return false;
  const int positions = hopper::TILE_POSITIONS;
  const int stage_bytes = hopper::stage_bytes(hopper::compiled_channels(problem.channels));
  static_assert((HOPPER_SHARED_MEMORY - hopper::E_STEP_BYTES) / hopper::stage_bytes(hopper::E_STEP_CHANNELS) >=
                hopper::E_STEP_MIN_STAGES);
  plan.hopper = true;
  plan.fused = work.m_step;
  plan.rows_resident = true;
  plan.row_slots = 0;
  plan.feature_slots =
      std::min((device.shared_memory - hopper::E_STEP_BYTES) / stage_bytes, hopper::E_STEP_MAX_STAGES);
  plan.shared_memory = plan.feature_slots * stage_bytes + hopper::E_STEP_BYTES;
  const int64_t width = padded_channels(problem.channels);
  SplitCost cost;
  cost.works = problem.images();
  cost.tiles = ceil_div(problem.positions, positions);
  cost.tile_bytes = 2 * width * positions;
  cost.block_bytes = 2 * width * padded_bases(problem.num_bases);
  plan.half_slots = plan.fused && hopper::half_slots(problem.dtype);
  cost.slot_bytes = plan.fused ? slot_bytes(problem, problem.channels, plan.half_slots) : 0;
  cost.blocks = cost.multiprocessors = device.multiprocessors;
  plan.splits = cost.best();
  return true;
}

// How many blocks share a multiprocessor: two small ones if their shared memory fits, one that fills the registers.
int resident_blocks(const Problem& problem, int shared_memory, const Device& device) {
  return is_small(problem) && 2 * (shared_memory + RESERVED_BYTES) <= device.shared_memory + RESERVED_BYTES ? 2 : 1;
}

// The slots of an E-step whose chunks of features are used once. Rows that stay are not read again for every tile, so
// they come first, then a second block on the multiprocessor, then depth.
void stream(EStepPlan& plan, const Problem& problem, int chunks, int row_bytes, const Device& device) {
  auto leaves_room_for = [&](int blocks) {
    return plan.shared_memory <= device.shared_memory && resident_blocks(problem, plan.shared_memory, device) >= blocks;
  };
  plan.fused = false;
  for (bool resident : {true, false})
    for (int blocks : {2, 1})
      for (int slots = resident ? 2 * MAX_SLOTS : MAX_SLOTS; slots >= (resident || blocks == 2 ? 2 : 1); --slots) {
        plan.rows_resident = resident;
        plan.feature_slots = slots;
        plan.row_slots = resident ? chunks : slots;
        plan.shared_memory = slots * FEATURE_BYTES + plan.row_slots * row_bytes + statistics_bytes(problem);
        if (leaves_room_for(blocks)) return;
      }
}

// Whether csrc/hopper has the gradient of a reconstruction.
bool has_reconstruct_gradient(const Problem& problem, const Device& device) {
  return for_hopper(problem, device) && problem.channels <= hopper::E_STEP_CHANNELS &&
         problem.value_channels <= hopper::E_STEP_CHANNELS;
}

// The gradient of the logits by csrc/hopper, with as many stages of features as fit, an even number; false: not by it.
bool use_boxes_for_gradient(EStepPlan& plan, const Problem& problem, const EStepWork& work, const Device& device) {
  using Layout = hopper::GradientLayout;
  if (!for_hopper(problem, device) || problem.channels > hopper::E_STEP_CHANNELS ||
      !(work.has_sums || work.has_values) || (work.has_values && !has_reconstruct_gradient(problem, device)))
    return false;
  const int channels = hopper::compiled_channels(problem.channels), matrices = work.has_sums ? 2 : 1;
  int stages = Layout::MAX_STAGES;
  while (Layout::bytes(channels, matrices, stages) > device.shared_memory) stages -= Layout::GROUPS;
  plan.hopper = plan.rows_resident = true;
  plan.fused = work.m_step;
  plan.feature_slots = stages;
  plan.row_slots = matrices;
  plan.shared_memory = Layout::bytes(channels, matrices, stages);
  SplitCost cost;
  cost.works = problem.images();
  cost.tiles = ceil_div(problem.positions, Layout::POSITIONS);
  cost.tile_bytes = Layout::stage_bytes(channels) + (work.has_values ? Layout::PRODUCTS_BYTES : 0);
  cost.block_bytes = int64_t{matrices} * Layout::rows_bytes(channels);
  plan.half_slots = plan.fused && hopper::half_slots(problem.dtype);
  cost.slot_bytes = plan.fused ? slot_bytes(problem, problem.channels, plan.half_slots) : 0;
  cost.blocks = cost.multiprocessors = device.multiprocessors;
  plan.splits = cost.best();
  return true;
}

// `device` with what hopper/defaults.h turns on for so large a problem, if nobody asked for something else.
Device chosen(const Problem& problem, Device device, int64_t tiles_from) {
  const int64_t positions = int64_t{problem.images()} * problem.positions;
  if (!device.by_default) return device;
  device.hopper = device.hopper && positions >= tiles_from;
  device.overlap = device.overlap && positions >= hopper::OVERLAP;
  device.one_launch = device.one_launch && positions >= hopper::LOOP;
  return device;
}

}  // namespace

EStepPlan plan_e_step(const Problem& problem, const Device& device, const EStepWork& work) {
  EStepPlan plan;
  if (use_boxes(plan, problem, work, device) || use_boxes_for_gradient(plan, problem, work, device)) return plan;
  const int rows_of_chunk = work.has_sums ? 2 : 1;
  const int row_bytes = rows_of_chunk * rows_tile(problem) * CHUNK_BYTES;
  const int64_t chunks = ceil_div(problem.channels, chunk_elements(problem));
  const bool may_fuse = work.m_step && !work.has_values && element_size(problem.dtype) == 2 &&
                        is_small(problem) && chunks <= FUSED_CHUNKS;
  const int64_t value_chunks = work.has_values ? ceil_div(problem.value_channels, chunk_elements(problem)) : 0;
  if (!may_fuse || !fuse(plan, problem, static_cast<int>(chunks), row_bytes, device))
    stream(plan, problem, static_cast<int>(chunks + value_chunks), row_bytes, device);
  const int64_t read_rows = (chunks * rows_of_chunk + value_chunks) * padded_bases(problem.num_bases) * CHUNK_BYTES;
  SplitCost cost;
  cost.works = problem.images();
  cost.tiles = tile_count(problem);
  cost.tile_bytes = (chunks + value_chunks) * FEATURE_BYTES + (plan.rows_resident ? 0 : read_rows);
  cost.block_bytes = plan.rows_resident ? read_rows : 0;
  cost.slot_bytes = plan.fused ? slot_bytes(problem, problem.channels, false) : 0;
  cost.blocks = device.multiprocessors * (plan.fused ? 1 : resident_blocks(problem, plan.shared_memory, device));
  cost.multiprocessors = device.multiprocessors;
  plan.splits = cost.best();
  return plan;
}

MStepPlan plan_m_step(const Problem& problem, int channels, const Device& device) {
  const int bases = padded_bases(problem.num_bases), all_channels = padded_channels(channels);
  MStepPlan plan;
  plan.hopper = for_hopper(problem, device);
  const int reach = round_up(all_channels, plan.hopper ? hopper::M_STEP_CHANNELS : 64);
  const int group = std::min(8 / (bases / 64) * 64, reach);
  const int stage_bytes = (element_size(problem.dtype) == 2 ? 64 : 32) * (bases + group) * element_size(problem.dtype);
  const int rest = plan.hopper ? BARRIER_BYTES : 0;
  plan.slots = std::clamp((device.shared_memory - rest) / stage_bytes, 1, plan.hopper ? BOX_SLOTS : MAX_SLOTS);
  plan.shared_memory = plan.slots * stage_bytes + rest;
  SplitCost cost;
  cost.works = problem.images() * ceil_div(all_channels, group);
  cost.tiles = tile_count(problem);
  cost.tile_bytes = int64_t{TILE} * (bases + group) * element_size(problem.dtype);
  cost.block_bytes = 0;
  plan.half_slots = plan.hopper && hopper::half_slots(problem.dtype);
  cost.slot_bytes = slot_bytes(problem, group, plan.half_slots);
  cost.blocks = cost.multiprocessors = device.multiprocessors;
  plan.splits = cost.best();
  // float32 keeps its digits only in short sums
  if (problem.dtype == Dtype::float32)
    plan.splits = std::max(plan.splits, static_cast<int>(ceil_div(cost.tiles, FLOAT32_TILES)));
  return plan;
}

// Splits for blocks alone, or for pairs of them that share what they load. Alone, more than FED_BY_L2 of the
// multiprocessors wait for L2. Pairs read less from it and wait for their own products: few blocks, or pairs that would
// have too much to do one behind the other, stay alone.
template <class Plan>
void split_by_clusters(Plan& plan, const SplitCost& alone, SplitCost pairs) {
  plan.splits = alone.best();
  if (alone.multiprocessors < 2) return;
  pairs.blocks = alone.multiprocessors / 2;
  const int64_t active = std::min<int64_t>(alone.works * plan.splits, alone.multiprocessors);
  const double wait = std::max(1.0, static_cast<double>(active) / (FED_BY_L2 * alone.multiprocessors));
  if (pairs.of(pairs.best()) >= wait * alone.of(plan.splits)) return;
  plan.splits = pairs.best();
  plan.cluster = 2;
}

ProductsPlan plan_products(const Problem& problem, int products, int channels, const Device& device) {
  ProductsPlan plan;
  plan.hopper = for_hopper(problem, device);
  if (!plan.hopper) return plan;
  const int room = device.shared_memory - hopper::PRODUCTS_RESULT_BYTES - BARRIER_BYTES;
  const int operands = room / hopper::PRODUCTS_OPERAND_BYTES;
  plan.resident = products + 2 <= operands;
  plan.slots = std::min(plan.resident ? operands - products : operands / 2, BOX_SLOTS);
  const int used = plan.slots + (plan.resident ? products : plan.slots);
  plan.shared_memory = hopper::PRODUCTS_RESULT_BYTES + BARRIER_BYTES + used * hopper::PRODUCTS_OPERAND_BYTES;
  SplitCost cost;
  cost.works = problem.images() * ceil_div(channels, hopper::PRODUCTS_TILE);
  cost.tiles = ceil_div(problem.positions, hopper::PRODUCTS_TILE);
  cost.tile_bytes = int64_t{products} * (plan.resident ? 1 : 2) * hopper::PRODUCTS_OPERAND_BYTES +
                    hopper::PRODUCTS_RESULT_BYTES / 2;
  cost.block_bytes = plan.resident ? int64_t{products} * hopper::PRODUCTS_OPERAND_BYTES : 0;
  cost.slot_bytes = 0;
  cost.blocks = cost.multiprocessors = device.multiprocessors;
  SplitCost pairs = cost;
  pairs.works = cost.works / 2;
  if (ceil_div(channels, hopper::PRODUCTS_TILE) % 2 == 0)
    split_by_clusters(plan, cost, pairs);
  else
    plan.splits = cost.best();
  return plan;
}

// The end of the unit by csrc/hopper. Tiles of pairs are twice as long, so that the same positions may take them more
// turns.
void split_unit_tail(UnitTailPlan& plan, const Problem& problem, const Device& device) {
  SplitCost alone;
  alone.works = problem.images() * ceil_div(problem.channels, hopper::UNIT_TAIL_OUTPUTS);
  alone.tiles = ceil_div(problem.positions, hopper::UNIT_TAIL_POSITIONS);
  alone.tile_bytes = ceil_div(problem.channels, 64) * hopper::UNIT_TAIL_SLOT_BYTES;
  alone.block_bytes = alone.slot_bytes = 0;
  alone.blocks = alone.multiprocessors = device.multiprocessors;
  SplitCost pairs = alone;
  pairs.tiles = ceil_div(alone.tiles, 2);
  split_by_clusters(plan, alone, pairs);
}

// Two blocks on a multiprocessor hide each other's waits, so they come before depth; csrc/hopper fills it with one.
UnitTailPlan plan_unit_tail(const Problem& problem, const Device& device) {
  const int size = element_size(problem.dtype);
  const int kept = TILE * padded_bases(problem.num_bases) * size + TILE * CHUNK_BYTES;
  UnitTailPlan plan;
  Problem any_rows = problem;
  any_rows.boxed = problem.boxed || problem.positions_fastest;
  // rows of the weight start at multiples of 16 bytes too
  plan.hopper = for_hopper(any_rows, device) && problem.channels % 8 == 0;
  if (plan.hopper) {
    plan.any_rows = !problem.boxed;
    const int rest = hopper::UNIT_TAIL_GROUPS_BYTES + hopper::UNIT_TAIL_BARRIER_BYTES +
                     (plan.any_rows ? hopper::UNIT_TAIL_ENDS_BYTES : 0);
    plan.slots = (device.shared_memory - rest) / hopper::UNIT_TAIL_SLOT_BYTES;
    plan.shared_memory = plan.slots * hopper::UNIT_TAIL_SLOT_BYTES + rest;
    split_unit_tail(plan, problem, device);
    return plan;
  }
  for (int blocks : {2, 1})
    for (plan.slots = MAX_SLOTS; plan.slots >= blocks; --plan.slots) {
      plan.shared_memory = kept + plan.slots * (OUTPUT_BYTES / size) * CHUNK_BYTES;
      if (blocks * (plan.shared_memory + RESERVED_BYTES) <= device.shared_memory + RESERVED_BYTES) return plan;
    }
  return plan;
}

// Clusters of 8 find room on any Hopper, and with one multiprocessor in 9 to spare all of them at the same time; with few
// images several of them share one. Clusters of 16 are for images that are too many for that and leave room.
LoopPlan plan_loop(const Problem& problem, const Device& device) {
  const int images = problem.images(), at_once = device.multiprocessors / 9;
  const int64_t tiles = tile_count(problem);
  LoopPlan plan;
  plan.one_launch = device.one_launch && fits_hopper(problem, device) && !problem.eight_bits &&
                    problem.channels <= hopper::LOOP_CHANNELS;
  plan.cluster = 2 * images > at_once && 16 * images <= device.multiprocessors ? 16 : 8;
  while (plan.cluster > 1 && plan.cluster / 2 >= tiles) plan.cluster /= 2;
  if (plan.cluster == 8)
    plan.clusters = static_cast<int>(std::clamp<int64_t>(at_once / images, 1, std::max<int64_t>(1, tiles / 8)));
  plan.positions = round_up(static_cast<int>(ceil_div(problem.positions, plan.cluster * plan.clusters)), 8);
  return plan;
}

// The gradient of a reconstruction, from the features or, with positions fastest, of rows that start anywhere.
template <class Layout>
MStepPlan plan_reconstruct_gradient(const Problem& problem, const Device& device) {
  const int channels = hopper::compiled_channels(std::max(problem.channels, problem.value_channels));
  MStepPlan plan;
  plan.hopper = has_reconstruct_gradient(problem, device);
  if (!plan.hopper) return plan;
  plan.slots = Layout::MAX_STAGES;
  while (Layout::bytes(channels, plan.slots) > device.shared_memory) --plan.slots;
  plan.shared_memory = Layout::bytes(channels, plan.slots);
  SplitCost cost;
  cost.works = problem.images();
  cost.tiles = ceil_div(problem.positions, hopper::GradientLayout::POSITIONS);
  cost.tile_bytes = Layout::stage_bytes(channels) + hopper::GradientLayout::PRODUCTS_BYTES;
  cost.block_bytes = 2 * hopper::GradientLayout::rows_bytes(channels);
  plan.half_slots = hopper::half_slots(problem.dtype);
  cost.slot_bytes = slot_bytes(problem, problem.value_channels, plan.half_slots);
  cost.blocks = cost.multiprocessors = device.multiprocessors;
  plan.splits = cost.best();
  return plan;
}

// Whether csrc/hopper serves features of which no boxes can be copied, or only of a copy.
bool serves_any_rows(const Problem& problem, const Device& device) {
  Problem copied = problem;
  copied.boxed = true;
  return !problem.boxed && problem.may_copy && for_hopper(copied, device);
}

Plan make_plan(const Problem& asked, const Device& device) {
  const Device forward = chosen(asked, device, hopper::FORWARD_TILES);
  const Device backward = chosen(asked, device, hopper::BACKWARD_TILES);
  Problem problem = asked;
  problem.boxed = asked.boxed || serves_any_rows(asked, forward);
  // e_step of csrc/hopper reads rows that start anywhere and those of 8 bits, and its products write any, also where
  // nothing else is served
  Problem once = problem;
  once.boxed = problem.boxed || problem.positions_fastest || problem.eight_bits;
  Plan plan;
  plan.loop = plan_loop(asked, forward);
  plan.e_step = plan_e_step(once, forward, {false, false, false});
  plan.iteration = plan_e_step(once, forward, {true, false, false});
  plan.eight_bits = problem.eight_bits && problem.dtype == Dtype::bfloat16 && plan.iteration.hopper;
  const bool unboxed = problem.boxed && !asked.boxed && !problem.eight_bits;
  plan.any_rows = unboxed && plan.iteration.hopper && problem.positions_fastest;
  plan.copies = unboxed && !plan.any_rows;
  plan.gradient = plan_e_step(problem, backward, {true, true, false});
  plan.first_gradient = plan_e_step(problem, backward, {false, true, false});
  plan.last_gradient = plan_e_step(problem, backward, {true, true, true});
  plan.value_gradient = plan_e_step(problem, backward, {true, false, true});
  plan.m_step = plan_m_step(problem, problem.channels, forward);
  plan.value_m_step = plan_m_step(problem, problem.value_channels, forward);
  plan.reconstruct_gradient = plan_reconstruct_gradient<hopper::ReconstructGradientLayout>(problem, backward);
  if (plan.any_rows) plan.rows_gradient = plan_reconstruct_gradient<hopper::RowsGradientLayout>(problem, backward);
  plan.reconstruction = plan_products(once, 1, problem.value_channels, forward);
  plan.grad_x = plan_products(problem, 2 * problem.grad_iters, problem.channels, backward);
  plan.value_grad_x = plan_products(problem, 1, problem.channels, backward);
  plan.unit_tail = plan_unit_tail(asked, chosen(asked, device, hopper::UNIT_TILES));
  // it reads no features
  Problem between = asked;
  between.boxed = true;
  plan.end_iteration = for_hopper(between, forward) && problem.channels <= 64 * hopper::END_ITERATION_BLOCKS;
  plan.overlap = forward.overlap;
  return plan;
}

}  // namespace ema
