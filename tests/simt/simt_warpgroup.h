// Products that a warpgroup has started and that are not done. Part of the machine behind simt.h and simt_hopper.h.
#pragma once
#include <deque>

#include "simt.h"

namespace simt {

// The 16-byte units of a line of 128 or 64 bytes are permuted by bits of the address above.
inline uintptr_t permuted(const void* p, int line) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address ^ (address >> 7 & (line == 64 ? 3 : 7)) << 4;
}

// Where an operand lies: see `Operand` of csrc/hopper/ptx.h.
struct SharedMatrix {
  const unsigned char* start;
  int leap, step, line;
  bool operator==(const SharedMatrix& other) const {
    return start == other.start && leap == other.leap && step == other.step && line == other.line;
  }
};

// D[64, columns] (+)= A[64, 16] B[16, columns]; A is in registers when its start is null.
struct Product {
  SharedMatrix a, b;
  int columns;
  bool fp16, a_transposed, b_transposed, accumulate;
  Place place;
  bool operator==(const Product& other) const {
    return a == other.a && b == other.b && columns == other.columns && fp16 == other.fp16 &&
           a_transposed == other.a_transposed && b_transposed == other.b_transposed && accumulate == other.accumulate &&
           place == other.place;
  }
};

struct StartedProduct {
  Product product;
  int threads = 0;    // that have started it
  unsigned done = 0;  // warps whose rows are computed
  float* d[128];
  uint32_t a[128][4];
};

struct Warpgroup {
  std::deque<StartedProduct> products;
  size_t first = 0;  // number of the oldest of them

  void reset() { products.clear(), first = 0; }
};

// This thread starts a product, whose operands are read and whose result is written until it is waited for.
void start_product(const Product& product, float* d, const uint32_t* a);
void commit_products();
void wait_for_products(size_t pending, const Place& place);

void start_store(const Place& place, std::function<void()> read, std::function<void()> write);
void commit_stores();
void wait_for_reads(size_t pending);

// At the end of a thread: all its products and stores must be done with shared memory.
void check_nothing_pending();

}  // namespace simt
