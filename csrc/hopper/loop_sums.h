// The end of an M-step of the loop: sums over the blocks of an image, in a fixed order, and new bases from them. A block
// has an equal share of the bases; 8 warps work here, one or several on a base.
#pragma once
#include "../device/divisor.h"
#include "loop_block.h"

#if EMA_HOPPER
namespace ema::hopper {

template <class Shape>
class LoopSums {
  using Math = typename Shape::Math;
  static constexpr int QUADS = Shape::WIDTH / 128;  // of channels, of a lane of a warp that has a base for itself

 public:
  // `warp` is one of the 8.
  EMA_DEVICE LoopSums(const LoopBlock<Shape>& block, const LoopArgs& args, int warp)
      : block_(block), args_(args), warp_(warp), bases_(64 / args.plan.cluster), across_(bases_ < 8 ? 8 / bases_ : 1),
        quads_(QUADS / across_), channel_(warp % across_ * (Shape::WIDTH / across_) + lane() * 4),
        // the address is made anew for every iteration: there are no registers for it
        unit_(weight_power(args.io.weight_maxima, opaque(block.image)) / RESPONSIBILITY_SCALE) {}

  // After iteration t; all blocks of the cluster have staged their sums.
  EMA_DEVICE void run(int t) const {
    if (args_.plan.clusters > 1) exchange(t);
    for (int b = warp_ / across_; b < bases_; b += 8 / across_) {
      const int base = block_.rank * bases_ + b;
      float4 line[QUADS] = {};
      float mass = 0;
      if (args_.plan.clusters > 1) {
        for (int other = 0; other < args_.plan.clusters; ++other) {
          add(line, [&](int channel) { return *slot(t, other, base, channel); });
          mass += *mass_slot(t, other, base);
        }
      } else {
        add_cluster(line, base);
        mass = cluster_mass(base);
      }
      finish(t, base, line, mass);
    }
  }

 private:
  // To the sums of every cluster of the image; all clusters of the image wait here for each other.
  EMA_DEVICE void exchange(int t) const {
    for (int b = warp_ / across_; b < bases_; b += 8 / across_) {
      const int base = block_.rank * bases_ + b;
      float4 line[QUADS] = {};
      add_cluster(line, base);
      for (int j = 0; j < QUADS; ++j)
        if (j < quads_) *slot(t, block_.cluster, base, channel_ + 128 * j) = line[j];
      const float mass = cluster_mass(base);
      if (lane() == 0 && warp_ % across_ == 0) *mass_slot(t, block_.cluster, base) = mass;
    }
    meet(BOTH_HALVES_MEET, 256);
    if (warp_ == 0 && lane() == 0) {
      unsigned* count = args_.io.counts + block_.image * args_.plan.cluster + block_.rank;
      count_up(count);
      wait_for_count(count, (t + 1) * args_.plan.clusters);
    }
    meet(BOTH_HALVES_MEET, 256);
  }

  template <class Read>
  EMA_DEVICE void add(float4 (&line)[QUADS], Read read) const {
#pragma unroll
    for (int j = 0; j < QUADS; ++j)
      if (j < quads_) {
        const float4 more = read(channel_ + 128 * j);
        line[j] = make_float4(line[j].x + more.x, line[j].y + more.y, line[j].z + more.z, line[j].w + more.w);
      }
  }

  EMA_DEVICE void add_cluster(float4 (&line)[QUADS], int base) const {
#pragma unroll 2
    for (int rank = 0; rank < args_.plan.cluster; ++rank)
      add(line, [&](int channel) { return staged(rank, base, channel); });
  }

  // Four neighbouring channels of what another block staged.
  EMA_DEVICE float4 staged(int rank, int base, int channel) const {
    const uint2 halves = load_peer(reinterpret_cast<const uint2*>(block_.sums().at(base, channel)), rank);
    const float factor = load_peer(block_.factors + (channel >= Shape::HALF) * 64 + base, rank);
    auto number = [&](uint32_t half) { return factor * __half2float(__ushort_as_half(static_cast<uint16_t>(half))); };
    return make_float4(number(halves.x), number(halves.x >> 16), number(halves.y), number(halves.y >> 16));
  }

  EMA_DEVICE float cluster_mass(int base) const {
    float mass = lane() < args_.plan.cluster ? load_peer(block_.masses + base, lane()) : 0.f;
    for (int other = 16; other > 0; other /= 2) mass += __shfl_xor_sync(~0u, mass, other);
    return mass;
  }

  // Two buffers in turn: a cluster may be an iteration ahead of one that still reads.
  EMA_DEVICE int64_t slot_row(int t, int cluster, int base) const {
    const int images = gridDim.x / (args_.plan.cluster * args_.plan.clusters);
    return ((int64_t{t % 2} * images + block_.image) * args_.plan.clusters + cluster) * 64 + base;
  }
  EMA_DEVICE float4* slot(int t, int cluster, int base, int channel) const {
    return reinterpret_cast<float4*>(args_.io.sums + slot_row(t, cluster, base) * Shape::WIDTH + channel);
  }
  EMA_DEVICE float* mass_slot(int t, int cluster, int base) const {
    return args_.io.masses + slot_row(t, cluster, base);
  }

  EMA_DEVICE float sum_of_base(float value) const {
    for (int other = 16; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    if (across_ == 1) return value;
    if (lane() == 0) block_.lengths[warp_] = value;  // a warp has a single base then
    meet(BOTH_HALVES_MEET, 256);
    value = 0;
    for (int i = 0; i < across_; ++i) value += block_.lengths[warp_ / across_ * across_ + i];
    return value;
  }

  EMA_DEVICE void finish(int t, int base, float4 (&line)[QUADS], float mass) const {
    mass *= unit_;
    const float total = divisor(mass, args_.eps, args_.eps_max);
    float squares = 0;
#pragma unroll
    for (int j = 0; j < QUADS; ++j) {
      float4& v = line[j];
      v = make_float4(unit_ * v.x / total, unit_ * v.y / total, unit_ * v.z / total, unit_ * v.w / total);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float length = sqrtf(sum_of_base(squares)), unit = divisor(length, args_.eps, args_.eps_max);
    const bool is_last = t == args_.num_iters - 1, writes = block_.cluster == 0 && base < args_.num_bases;
    const float factor = is_last ? 1.f : args_.scale;
    const int64_t cluster = blockIdx.x / args_.plan.cluster, images = gridDim.x / (args_.plan.cluster * args_.plan.clusters);
    auto* row = static_cast<uint16_t*>(args_.io.rows) + (cluster * 64 + base) * Shape::WIDTH;
    float* dense = is_last ? args_.io.bases : args_.io.path + (t + 1) * images * args_.channels * args_.num_bases;
    dense += int64_t{block_.image} * args_.channels * args_.num_bases + base;
#pragma unroll
    for (int j = 0; j < QUADS; ++j)
      if (j < quads_) {
        const int channel = channel_ + 128 * j;
        const float values[4] = {line[j].x / unit, line[j].y / unit, line[j].z / unit, line[j].w / unit};
        *reinterpret_cast<uint2*>(row + channel) = make_uint2(round_pair<Math>(factor * values[0], factor * values[1]),
                                                              round_pair<Math>(factor * values[2], factor * values[3]));
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (writes && channel + e < args_.channels) dense[int64_t{channel + e} * args_.num_bases] = values[e];
      }
    if (writes && lane() == 0 && warp_ % across_ == 0) {
      const int64_t at = (t * images + block_.image) * args_.num_bases + base;
      args_.io.mass[at] = mass;
      args_.io.length[at] = length;
    }
  }

  const LoopBlock<Shape>& block_;
  const LoopArgs& args_;
  int warp_, bases_, across_, quads_, channel_;
  float unit_;
};

}  // namespace ema::hopper
#endif
