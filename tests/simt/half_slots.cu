// Sums as warpgroups have them, through slots of float16 and added up again.
#include "hopper/store_sums.h"
#include "kernels/add_slots.h"

namespace {

using namespace ema;

constexpr int COLUMNS = 64;  // of a warpgroup

// sums [slots, 64, width]: a block for every slot, a warpgroup for every 64 channels.
__global__ void store_kernel(const float* sums, float* slots, int width) {
  const int thread = threadIdx.x % 128, channel = threadIdx.x / 128 * COLUMNS;
  const int base = thread / 32 * 16 + thread % 32 / 4;
  float mine[COLUMNS / 2];
  for (int i = 0; i < COLUMNS / 2; ++i) {
    const int row = blockIdx.x * 64 + base + i / 2 % 2 * 8;
    mine[i] = sums[row * width + channel + i / 4 * 8 + thread % 4 * 2 + i % 2];
  }
  hopper::store_sums<Bfloat16, COLUMNS>(mine, slots, blockIdx.x, channel, width);
}

// totals [images, 64, width], each block for `lines` bases.
__global__ void add_kernel(Partials partials, float* totals, int lines, int channels) {
  EMA_SHARED(shared);
  const Place place(shared, lines, 64, channels);
  add_slots(place, partials, channels, place.memory);
  for (int c = place.first; c < place.width; c += place.step)
    totals[place.row() * place.width + c] = place.line(place.memory)[c];
}

}  // namespace

extern "C" {
int64_t slot_bytes(int width) { return 4 * half_slot_words(64, width); }

int there_and_back(const float* sums, float* slots, float* totals, int images, int splits, int channels, int lines) {
  const int width = padded_channels(channels);
  const dim3 threads(width / COLUMNS * 128);
  const int error = launch(store_kernel, dim3(images * splits), threads, 0, nullptr, sums, slots, width);
  Partials partials;
  partials.sums = slots;
  partials.sum_splits = splits;
  partials.half_slots = true;
  const int numbers = LINE_WARPS + lines * (width + LINE_GAP);
  return error != 0 ? error
                    : launch(add_kernel, dim3(images * 64 / lines), dim3(LINE_THREADS), 4 * numbers, nullptr, partials,
                             totals, lines, channels);
}
}
