// Every instruction that only Hopper (sm_90a) has, behind a name. tests/simt/simt_hopper.h has the same names for the CPU.
//
// Tiles have lines of 128 bytes, 64 numbers of 16 bits, and start at multiples of 1024 bytes; the 16-byte units of line
// r are permuted by r % 8, as boxes arrive, as products expect them and as `Tile<uint16_t, 64>` reads and writes them.
// Features with positions fastest may have lines of 64 bytes, whose units are permuted by r / 2 % 4.
//
// A warpgroup is 4 warps, the first a multiple of 4. Its product D[64, COLUMNS] += A[64, 16] B[16, COLUMNS] lies in
// its registers, warp w and lane l with g = l / 4 and t = l % 4:
//   D                  d[4 j + 0..1] = row 16 w + g, columns 8 j + 2 t and + 1; d[4 j + 2..3] the same of row + 8
//   A in registers     a[0] = row 16 w + g, k 2 t and 2 t + 1; a[1] row + 8; a[2] and a[3] the same at k + 8
#pragma once
#include <cstdint>

#include "../device/platform.h"
#include "../problem.h"
#include "tensor_map.h"

// Whether the body of a kernel that uses these names can be compiled: each starts with `#if EMA_HOPPER`.
#if defined(EMA_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EMA_HOPPER 1
#else
#define EMA_HOPPER 0
#endif

#ifdef EMA_SIMT
#include "simt_hopper.h"
#else
#include "../device/ptx.h"

namespace ema {

// Barriers in shared memory. A phase ends when all arrivals are in and all bytes that were announced have landed; waiting
// for parity p lasts until the phase number p, p + 2, ... has ended (the first one has number 0).
struct Barrier {
  uint64_t state;
};

EMA_DEVICE void init_barrier(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After init_barrier by the same thread, before the block or the cluster meets: others may use them from then on, and
// copies of the same thread at once.
EMA_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

EMA_DEVICE void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// An arrival that announces bytes.
EMA_DEVICE void arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
EMA_DEVICE bool has_ended(Barrier* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(ended) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  return ended != 0;
}
// How long a wait has lasted since this was made. With EMA_OPS_TRAP two seconds end in an error of the launch: not a number
// of tries, for the hardware holds a thread as long as it likes before it answers; and by a write to nowhere, for with
// __trap the compiler shares the registers of warpgroups out in another way than without.
class Patience {
 public:
#ifdef EMA_OPS_TRAP
  EMA_DEVICE void check() const {
    if (nanoseconds() - begin_ > 2000000000u) asm volatile("st.global.u32 [%0], %1;" ::"l"(0ull), "r"(0) : "memory");
  }

 private:
  EMA_DEVICE static uint32_t nanoseconds() {
    uint32_t now;
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now));
    return now;
  }
  uint32_t begin_ = nanoseconds();
#else
  EMA_DEVICE void check() const {}
#endif
};

EMA_DEVICE void wait(Barrier* barrier, uint32_t parity) {
  const Patience patience;
  while (!has_ended(barrier, parity)) patience.check();
}

// `threads` of the block meet; barrier 0 is __syncthreads.
EMA_DEVICE void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// One thread fetches a map ahead of the copies by it, before the kernel waits for others: a parameter is there already.
// Only a map that was made.
EMA_DEVICE void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// One thread starts the copy of a box to shared memory; `barrier` counts its bytes, those beyond the matrix too. `column`
// is a multiple of 8: at another one the instruction is an illegal one.
EMA_DEVICE void copy_box(void* shared, const TensorMap& map, Barrier* barrier, int column, int line, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
      ::"r"(shared_address(shared)), "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(line), "r"(head), "r"(batch)
      : "memory");
}
// The same to the same address, and the same barrier, of every block of the cluster whose bit is set.
EMA_DEVICE void copy_box_to(uint16_t blocks, void* shared, const TensorMap& map, Barrier* barrier, int column, int line,
                            int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
      ::"r"(shared_address(shared)), "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(line), "r"(head), "r"(batch),
        "h"(blocks)
      : "memory");
}
// A multiple of 16 bytes that lie behind each other.
EMA_DEVICE void copy_bytes(void* shared, const void* global, int bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// One thread starts the copy of a box to memory; what lies beyond the matrix is left out. The boxes since the last
// commit_stores are a group.
EMA_DEVICE void store_box(const TensorMap& map, const void* shared, int column, int line, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
               ::"l"(&map), "r"(shared_address(shared)), "r"(column), "r"(line), "r"(head), "r"(batch) : "memory");
}
EMA_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// At most PENDING groups of this thread still read shared memory. All are in memory when the kernel has ended.
template <int PENDING>
EMA_DEVICE void wait_for_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// What this thread read and wrote in shared memory comes before copies of boxes and products that are started after it
// (by another thread: after a barrier that follows).
EMA_DEVICE void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same of what it wrote to memory, before copies that read it there. As slow as a fence of the whole GPU.
EMA_DEVICE void fence_copies_of_memory() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Where an operand of a product lies in shared memory. With its inner dimension in the lines, `step` is the distance of
// 8 lines (1024) and `leap` unused. TRANSPOSED (64 rows or columns of the operand in each line, a line for each of the
// inner dimension), `step` is the distance of 8 lines and `leap` the distance of the next 64 rows or columns. With lines
// of 64 bytes, `line`, it is 32 rows or columns.
using Operand = uint64_t;
EMA_DEVICE Operand make_operand(const void* shared, int leap, int step, int line = 128) {
  return ((uint64_t(shared_address(shared)) & 0x3FFFF) >> 4) | uint64_t(leap >> 4 & 0x3FFF) << 16 |
         uint64_t(step >> 4 & 0x3FFF) << 32 | uint64_t(line == 64 ? 2 : 1) << 62;
}
EMA_DEVICE Operand moved(Operand operand, int bytes) { return operand + static_cast<uint64_t>(bytes >> 4); }

// Around products: begin_products after other accesses to their registers, commit_products makes a group of those since
// the last one, and after wait_for_products at most PENDING groups are unfinished.
EMA_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
EMA_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
EMA_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// After the wait: the compiler does not read earlier what products have written.
template <int COUNT>
EMA_DEVICE void settle(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <Dtype DTYPE, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED>
struct GroupProduct;  // in wgmma.h

}  // namespace ema

#include "wgmma.h"

namespace ema {

// d (+)= a b, both in shared memory; not `accumulate`: d = a b.
template <Dtype DTYPE, int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED>
EMA_DEVICE void multiply_group(float (&d)[COLUMNS / 2], Operand a, Operand b, bool accumulate) {
  GroupProduct<DTYPE, COLUMNS, A_TRANSPOSED, B_TRANSPOSED>::run(d, a, b, accumulate);
}
// a in registers.
template <Dtype DTYPE, int COLUMNS, bool B_TRANSPOSED>
EMA_DEVICE void multiply_group(float (&d)[COLUMNS / 2], const uint32_t (&a)[4], Operand b, bool accumulate) {
  GroupProduct<DTYPE, COLUMNS, false, B_TRANSPOSED>::run(d, a, b, accumulate);
}

// Four 8 x 8 matrices of 16 bits to shared memory, every one transposed: lane l gives the address of line l % 8 of matrix
// l / 8; r[i] has lines 2 t and 2 t + 1 of column g of matrix i.
EMA_DEVICE void store_matrices_transposed(void* line, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(shared_address(line)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// Four numbers of 8 bits (e4m3) as float16, exactly; NaN stays NaN.
EMA_DEVICE uint2 widen_e4m3(uint32_t four) {
  uint2 halves;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, high;\n}"
      : "=r"(halves.x), "=r"(halves.y) : "r"(four));
  return halves;
}

// A warpgroup takes registers that others of the block gave back, COUNT a thread, a multiple of 8.
template <int COUNT>
EMA_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
EMA_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
// The compiler cannot move what is computed from the result: address arithmetic stays inside a loop.
EMA_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// All threads of all blocks of the cluster meet.
EMA_DEVICE void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
EMA_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
EMA_DEVICE uint32_t peer_address(const void* shared, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}
// An arrival at the same barrier of a block of the cluster. What comes before it are products that were waited for: to
// release writes as well would take a fence of the whole GPU.
EMA_DEVICE void arrive_at(Barrier* barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer_address(barrier, rank)) : "memory");
}
// What lies at the same place of the shared memory of another block of the cluster.
EMA_DEVICE float load_peer(const float* shared, int rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(peer_address(shared, rank)) : "memory");
  return value;
}
EMA_DEVICE uint2 load_peer(const uint2* shared, int rank) {
  uint2 value;
  asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y) : "r"(peer_address(shared, rank)) : "memory");
  return value;
}
EMA_DEVICE float4 load_peer(const float4* shared, int rank) {
  float4 value;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "r"(peer_address(shared, rank)) : "memory");
  return value;
}

// A number in memory that blocks count up together: what a block wrote before it counts, all see who waited for it.
EMA_DEVICE void count_up(unsigned* number) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(number)) : "memory");
}
EMA_DEVICE void wait_for_count(const unsigned* number, unsigned target) {
  unsigned value;
  const Patience patience;
  do {
    patience.check();
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(number)) : "memory");
  } while (value < target);
}

}  // namespace ema
#endif
