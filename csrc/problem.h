// What a call asks for. Every image is one head of one picture: images = batch * heads.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define EMA_HOST_DEVICE __host__ __device__
#else
#define EMA_HOST_DEVICE
#endif

namespace ema {

enum class Dtype { float32, bfloat16, float16 };

// Features [batch, heads, positions, channels] in memory; strides in elements, one of the last two is 1.
struct Features {
  void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, position_stride = 0, channel_stride = 0;
  int channels = 0;
};

// Whether boxes of 16-bit features can be copied: all rows start at multiples of 16 bytes. What is expanded has a stride
// of 0, of which the copy engine's documentation says nothing.
inline bool can_be_boxed(const Features& x, bool positions_fastest) {
  const int64_t row = positions_fastest ? x.channel_stride : x.position_stride;
  return x.batch_stride != 0 && x.head_stride != 0 && row != 0 &&
         (reinterpret_cast<uintptr_t>(x.data) | 2 * static_cast<uint64_t>(x.batch_stride | x.head_stride | row)) % 16 == 0;
}

// A weight [batch, heads, positions] of float32 with any strides; data may be null: all ones.
struct Weight {
  const float* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, position_stride = 0;
};

struct Problem {
  int batch = 1, heads = 1, positions = 1, channels = 1, value_channels = 1, num_bases = 1;
  Dtype dtype = Dtype::float32;
  bool eight_bits = false;         // x is in 8 bits (e4m3), dtype is that of its products and of y
  bool tf32 = false;               // float32 products may drop to tf32
  bool positions_fastest = false;  // memory order of all features: [.., C, N] instead of [.., N, C]
  bool weighted = false;           // positions have weights
  bool boxed = false;              // boxes of all features can be copied
  bool may_copy = false;           // features may be copied to rows of which boxes can be: they are read many times
  int num_iters = 1, grad_iters = 1;
  float scale = 1, eps = 0;
  bool eps_max = false;  // divide by max(eps, value) instead of eps + value

  int images() const { return batch * heads; }
};

inline int element_size(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }
EMA_HOST_DEVICE inline int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

// Bases lie in memory as rows [images, padded_bases, padded_channels] in the dtype of x, zero beyond K and C.
EMA_HOST_DEVICE inline int padded_bases(int num_bases) { return round_up(num_bases, 64); }
EMA_HOST_DEVICE inline int padded_channels(int channels) { return round_up(channels, 64); }

// A slot of partial sums of float16 (device/half_slot.h): channels that share a power, and its size in words of 4 bytes.
constexpr int POWER_CHANNELS = 64;
EMA_HOST_DEVICE inline int64_t half_slot_words(int bases, int width) {
  return int64_t{bases} * (width / 2 + width / POWER_CHANNELS);
}

}  // namespace ema
