// E-step, and the M-step of the same positions: warpgroup 0 keeps the bases in its registers and makes
// responsibilities, the others load features and keep the sums, each those of its share of the channels.
//
// Responsibilities are handed over when the product of the next ones is done, so that their M-step runs beside the next
// softmax. A stage is filled again once both M-steps have finished with it, and they begin after the E-step.
#include "e_step_loader.h"
#include "store_sums.h"

namespace ema::hopper {
namespace {

#if EMA_HOPPER
template <class V>
EMA_DEVICE void respond(const EStepBlock<V>& block, const TensorMap& z_map) {
  using Math = typename V::Math;
  const EStepArgs& args = block.args;
  const EStep& io = args.io;
  const int thread = threadIdx.x, base = first_base();
  const bool real[2] = {base < args.num_bases, base + 8 < args.num_bases};
  auto hand_over = [&](int slot) { arrive_as_warp(block.z_full + slot); };
  uint32_t rows[V::CHANNELS / 16][4];
  load_rows(rows, io.logit_rows, block.image, padded_channels(io.x.channels));
  const float weight_unit = 1.f / weight_power(io.weight_maxima, block.image);
  float masses[2] = {};
  Turn turn;
  int previous = -1;
  for (int i = 0; i < block.count; ++i, turn.advance(args.stages)) {
    wait(block.x_full + turn.slot, turn.parity);
    const int position = block.position(i);
    // 0 beyond the last position, which has features 0 and some responsibilities all the same
    const float weight =
        weight_unit * position_weight(io.weight, block.image, args.heads, position + lane(), args.positions);
    float z[TILE_POSITIONS / 2];
#pragma unroll
    for (int e = 0; e < TILE_POSITIONS / 2; ++e) z[e] = block.bias[base + e / 2 % 2 * 8];
    begin_products();
    block.stage(turn.slot).add_rows(z, rows);
    commit_products();
    wait_for_products<0>();
    settle(z);
    if (previous >= 0) hand_over(previous);
    previous = turn.slot;
    if (thread == 0) wait_for_reads<0>();
    respond_to<Math>(z, real, block.maxima, block.totals, 1);
    if (io.responsibilities != nullptr) store_positions<Math>(z, Tile<uint16_t, 64>{block.stored});
    weigh(z, weight, masses);
    if (io.sums != nullptr) store_positions<Math>(z, Tile<uint16_t, 64>{block.z + turn.slot * block.Z_BYTES});
    fence_copies();
    if (io.responsibilities != nullptr) {
      meet(1, GROUP);
      if (thread == 0) {
        store_box(z_map, block.stored, 0, position, block.head, block.batch);
        commit_stores();
      }
    }
  }
  hand_over(previous);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    masses[half] += __shfl_xor_sync(~0u, masses[half], 1);
    masses[half] += __shfl_xor_sync(~0u, masses[half], 2);
    if (lane() % 4 == 0) io.masses[static_cast<int64_t>(blockIdx.x) * 64 + base + 8 * half] = masses[half];
  }
  if (thread == 0) wait_for_reads<0>();
}

template <class V>
EMA_DEVICE void add_up(const EStepBlock<V>& block, const TensorMap& x_map) {
  constexpr int COLUMNS = V::CHANNELS / V::M_GROUPS;
  const EStep& io = block.args.io;
  const int group = threadIdx.x / GROUP - 1, stages = block.args.stages;
  const EStepLoader<V> loader(block, x_map, group);
  loader.start();
  Turn turn;
  if (io.sums == nullptr) {
    // by boxes only who loads: another one could fall behind by a whole turn of the stages and wait for ever
    for (int i = 0; i < block.count && (V::ROWS != Rows::BOXED || group_thread() == 0); ++i, turn.advance(stages)) {
      wait(block.z_full + turn.slot, turn.parity);
      loader.go_on(i, turn.slot);
    }
    loader.finish();
    return;
  }
  float sums[COLUMNS / 2] = {};
  for (int i = 0; i < block.count; ++i, turn.advance(stages)) {
    wait(block.x_full + turn.slot, turn.parity);
    wait(block.z_full + turn.slot, turn.parity);
    begin_products();
    block.stage(turn.slot).template add_sums<COLUMNS>(sums, block.z + turn.slot * block.Z_BYTES, group * (COLUMNS / 64));
    commit_products();
    if constexpr (V::ROWS == Rows::BOXED) {
      wait_for_products<1>();
      meet(2 + group, GROUP);
    }
    loader.go_on(i, turn.slot);
    __syncwarp();
  }
  wait_for_products<0>();
  settle(sums);
  store_sums<typename V::Math, COLUMNS>(sums, io.sums, blockIdx.x, group * COLUMNS, padded_channels(io.x.channels));
  loader.finish();
}
#endif

template <class V>
__global__ void __launch_bounds__(V::THREADS, 1)
    e_step_kernel(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap z_map,
                  const EStepArgs args) {
#if EMA_HOPPER
  EMA_SHARED(shared);
  if (threadIdx.x == 0) {
    if (V::ROWS == Rows::BOXED || args.io.copy.data != nullptr) prefetch_map(x_map);
    if (args.io.responsibilities != nullptr) prefetch_map(z_map);
  }
  wait_for_predecessors();
  EStepBlock<V>(args, shared).prepare();
  // bases or sums of 512 channels are 128 registers a thread
  if (threadIdx.x < GROUP) {
    if constexpr (V::CHANNELS == 512) take_registers<184>();
    respond(EStepBlock<V>(args, shared), z_map);
  } else {
    if constexpr (V::CHANNELS == 512) give_registers<160>();
    add_up(EStepBlock<V>(args, shared), x_map);
  }
#endif
}

}  // namespace

cudaError_t e_step(const Problem& problem, const EStepPlan& plan, const EStep& io, cudaStream_t stream) {
  const EStepArgs args{io, plan.splits, plan.feature_slots, problem.heads, problem.positions, problem.num_bases};
  const dim3 grid(problem.images() * plan.splits);
  const bool any_rows = !problem.eight_bits && problem.positions_fastest && !can_be_boxed(io.x, true);
  const Features& boxed = any_rows || problem.eight_bits ? io.copy : io.x;
  TensorMap x_map{}, z_map{};
  cudaError_t error = boxed.data == nullptr ? cudaSuccess : make_tile_map(&x_map, problem, boxed);
  if (error == cudaSuccess && io.responsibilities != nullptr)
    error = make_tensor_map(&z_map, as_matrices(problem, io.responsibilities, problem.positions, 64), TILE_POSITIONS);
  if (error != cudaSuccess) return error;
  auto run = [&](auto variant) {
    using V = decltype(variant);
    return launch(e_step_kernel<V>, grid, dim3(V::THREADS), plan.shared_memory, stream, x_map, z_map, args);
  };
  return with_kind(problem, problem.channels, [&](auto kind) {
    using Kind = decltype(kind);
    if constexpr (Kind::Math::DTYPE == Dtype::bfloat16)
      if (problem.eight_bits) return run(EStepVariant<Kind, Rows::EIGHT_BITS>{});
    if constexpr (Kind::POSITIONS_FASTEST)
      if (any_rows) return run(EStepVariant<Kind, Rows::ANY>{});
    return run(EStepVariant<Kind, Rows::BOXED>{});
  });
}

}  // namespace ema::hopper
