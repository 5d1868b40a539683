// Features of 16 bits whose rows start anywhere, copied to rows that start at multiples of 16 bytes.
#include "../device/tile.h"
#include "kernels.h"

namespace ema {
namespace {

constexpr int THREADS = 256, AT_ONCE = 4, UNIT = 8;  // elements of 16 bytes

struct Args {
  Features in, out;
  int heads, positions, units;  // units of a row of `out`
  int64_t blocks;               // of an image
};

template <bool POSITIONS_FASTEST>
__global__ void __launch_bounds__(THREADS, 1) align_rows_kernel(const Args args) {
  wait_for_predecessors();
  const int image = static_cast<int>(blockIdx.x / args.blocks);
  const auto in = image_of<uint16_t, POSITIONS_FASTEST>(args.in, image, args.heads, args.positions);
  const auto out = image_of<uint16_t, POSITIONS_FASTEST>(args.out, image, args.heads, args.positions);
  const int64_t begin = blockIdx.x % args.blocks * (THREADS * AT_ONCE);
  const int row = static_cast<int>(begin / args.units), unit = static_cast<int>(begin % args.units);
  const uint16_t* end = in.data + (in.rows - 1) * in.stride + in.columns;
#pragma unroll
  for (int i = 0; i < AT_ONCE; ++i) {
    const int next = unit + i * THREADS + static_cast<int>(threadIdx.x);
    const int r = row + next / args.units, column = next % args.units * UNIT;
    if (r >= in.rows) continue;
    const int left = in.columns - column;
    *reinterpret_cast<uint4*>(out.data + r * out.stride + column) =
        load_unaligned(in.data + r * in.stride + column, left < UNIT ? left : UNIT, in.data, end);
  }
}

}  // namespace

cudaError_t align_rows(const Problem& problem, const Features& in, const Features& out, cudaStream_t stream) {
  const bool columns = problem.positions_fastest;
  const int rows = columns ? in.channels : problem.positions;
  const int units = (columns ? problem.positions - 1 : in.channels - 1) / UNIT + 1;
  const int64_t blocks = (int64_t{rows} * units - 1) / (THREADS * AT_ONCE) + 1;
  const Args args{in, out, problem.heads, problem.positions, units, blocks};
  auto kernel = columns ? align_rows_kernel<true> : align_rows_kernel<false>;
  return launch(kernel, dim3(static_cast<unsigned>(problem.images() * blocks)), dim3(THREADS), 0, stream, args);
}

}  // namespace ema
