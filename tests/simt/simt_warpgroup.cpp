// Products of warpgroups and stores of boxes: the work of the hardware that threads wait for in groups.
#include "simt_warpgroup.h"

#include "simt_ptx.h"
#include "simt_watch.h"

namespace simt {
namespace {

constexpr int ROWS = 64, DEPTH = 16, MOST_COLUMNS = 256, ALL_WARPS = 15;

// Calls `use` with every unit of an operand, in front of the permutation.
template <class Use>
void for_units(const SharedMatrix& matrix, int rows, bool transposed, Use use) {
  const int line = matrix.line, in_line = line / 2;  // rows in a line of a transposed one
  if (transposed)
    for (int k = 0; k < DEPTH; ++k)
      for (int i = 0; i < rows; i += 8)
        use(matrix.start + i / in_line * matrix.leap + k / 8 * matrix.step + k % 8 * line + i % in_line * 2);
  else
    for (int i = 0; i < rows; ++i)
      for (int half = 0; half < 2; ++half) use(matrix.start + i / 8 * matrix.step + i % 8 * line + 16 * half);
}

// 8 numbers of 16 bits as float32.
void decode(const unsigned char* unit, int line, bool fp16, float* out) {
  uint16_t numbers[8];
  std::memcpy(numbers, reinterpret_cast<const void*>(permuted(unit, line)), 16);
  for (int i = 0; i < 8; ++i)
    out[i] = __uint_as_float(fp16 ? ema::simt_ptx::Fp16::decode(numbers[i], 0) : uint32_t{numbers[i]} << 16);
}

// Rows `first` to `last` of an operand whose inner dimension lies in the lines, as [row][k].
void read_rows(const SharedMatrix& matrix, bool fp16, int first, int last, float (*out)[DEPTH]) {
  for (int i = first; i < last; ++i)
    for (int half = 0; half < 2; ++half)
      decode(matrix.start + i / 8 * matrix.step + i % 8 * matrix.line + 16 * half, matrix.line, fp16,
             out[i - first] + 8 * half);
}

// The same of an operand with a line for each of the inner dimension, as [k][row]; whole units.
template <int WIDTH>
void read_lines(const SharedMatrix& matrix, bool fp16, int first, int last, float (*out)[WIDTH]) {
  const int rows = matrix.line / 2;  // of a line
  for (int k = 0; k < DEPTH; ++k)
    for (int i = first; i < last; i += 8)
      decode(matrix.start + i / rows * matrix.leap + k / 8 * matrix.step + k % 8 * matrix.line + i % rows * 2,
             matrix.line, fp16, out[k] + i - first);
}

void read_left(const StartedProduct& started, int warp, float (&a)[16][DEPTH]) {
  const Product& product = started.product;
  if (product.a.start == nullptr) {
    for (int lane = 0; lane < 32; ++lane)
      for (int r = 0; r < 4; ++r)
        for (int v = 0; v < 2; ++v) {
          const uint32_t bits = started.a[32 * warp + lane][r];
          const uint32_t value = product.fp16 ? ema::simt_ptx::Fp16::decode(bits, v) : ema::simt_ptx::Bf16::decode(bits, v);
          a[lane / 4 + r % 2 * 8][lane % 4 * 2 + v + r / 2 * 8] = __uint_as_float(value);
        }
  } else if (product.a_transposed) {
    float lines[DEPTH][16];
    read_lines(product.a, product.fp16, 16 * warp, 16 * warp + 16, lines);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < DEPTH; ++k) a[i][k] = lines[k][i];
  } else {
    read_rows(product.a, product.fp16, 16 * warp, 16 * warp + 16, a);
  }
}

void read_right(const Product& product, float (&b)[DEPTH][MOST_COLUMNS]) {
  if (product.b_transposed) return read_lines(product.b, product.fp16, 0, product.columns, b);
  float rows[MOST_COLUMNS][DEPTH];
  read_rows(product.b, product.fp16, 0, product.columns, rows);
  for (int k = 0; k < DEPTH; ++k)
    for (int j = 0; j < product.columns; ++j) b[k][j] = rows[j][k];
}

// Most of the time of a test with products of warpgroups is spent here.
void multiply(const float (&a)[16][DEPTH], const float (&b)[DEPTH][MOST_COLUMNS], int columns,
              float (&d)[16][MOST_COLUMNS]) {
  using Row = float __attribute__((vector_size(32)));
  for (int j = 0; j < columns; j += 16)
    for (int i = 0; i < 16; i += 4) {
      Row sums[4][2] = {};
      for (int k = 0; k < DEPTH; ++k) {
        Row right[2];
        std::memcpy(right, &b[k][j], sizeof right);
        for (int r = 0; r < 4; ++r)
          for (int half = 0; half < 2; ++half) sums[r][half] += a[i + r][k] * right[half];
      }
      for (int r = 0; r < 4; ++r) std::memcpy(&d[i + r][j], sums[r], sizeof sums[r]);
    }
}

// The rows of `warps`, a bit for each, that are not there yet. The sum over k is taken first, in float32.
void compute(StartedProduct& started, unsigned warps) {
  const Product& product = started.product;
  warps &= ~started.done;
  if (warps == 0) return;
  started.done |= warps;
  alignas(32) float b[DEPTH][MOST_COLUMNS], d[16][MOST_COLUMNS];
  read_right(product, b);
  if (product.columns % 16 != 0)
    for (auto& line : b) std::memset(line + product.columns, 0, 8 * sizeof(float));
  for (int warp = 0; warp < 4; ++warp) {
    if ((warps >> warp & 1) == 0) continue;
    float a[16][DEPTH];
    read_left(started, warp, a);
    multiply(a, b, product.columns, d);
    for (int lane = 0; lane < 32; ++lane) {
      float* target = started.d[32 * warp + lane];
      const int g = lane / 4, t = lane % 4;
      for (int j = 0; j < product.columns / 8; ++j)
        for (int e = 0; e < 4; ++e) {
          float& sum = target[4 * j + e];
          sum = (product.accumulate ? sum : 0.f) + d[g + e / 2 * 8][8 * j + 2 * t + e % 2];
        }
    }
  }
}

void check_operand(const SharedMatrix& matrix, int rows, bool transposed, const char* name, const Place& place) {
  const Block& block = *self->warp->block;
  const auto address = reinterpret_cast<uintptr_t>(matrix.start);
  const ptrdiff_t offset = matrix.start - block.shared;
  const int line = matrix.line, eight = 8 * line;
  const int in_line = address % line, wide = transposed ? std::min(rows * 2, line) : DEPTH * 2;
  if (address % 16 != 0 || matrix.leap % 16 != 0 || matrix.step % 16 != 0)
    fail(place, "%s at byte %td of shared memory, leap %d, step %d: expected multiples of 16", name, offset, matrix.leap,
         matrix.step);
  if (address % eight >= static_cast<unsigned>(line)) fail(place, "%s at byte %td of shared memory, not in the first of 8 lines", name, offset);
  if (in_line + wide > line)
    fail(place, "%s from byte %d to %d of lines of %d bytes", name, in_line, in_line + wide, line);
  const unsigned char* last = matrix.start - in_line;
  last += transposed ? (2 * rows - 1) / line * matrix.leap + matrix.step : (rows - 1) / 8 * matrix.step;
  if (!block.contains(matrix.start - in_line, eight) || !block.contains(last, eight))
    fail(place, "%s from byte %td to %td of %d bytes of shared memory", name, offset, last + eight - block.shared,
         block.shared_bytes);
  for_units(matrix, rows, transposed, [&](const unsigned char* unit) {
    hardware_reads(block, reinterpret_cast<const void*>(permuted(unit, line)), 16, name, place);
  });
}

int thread_number() { return static_cast<int>(self - self->warp->block->threads); }
Warpgroup& my_warpgroup() { return self->warp->block->warpgroups[thread_number() / 128]; }

void drop_done(Warpgroup& warpgroup) {
  while (!warpgroup.products.empty() && warpgroup.products.front().done == ALL_WARPS) {
    warpgroup.products.pop_front();
    ++warpgroup.first;
  }
}

std::string describe_products(const void* awaited) {
  for (const StartedProduct& started : static_cast<const Warpgroup*>(awaited)->products)
    if (started.threads < 128) {
      const Place& place = started.product.place;
      return "(only " + std::to_string(started.threads) + " of 128 threads have started the product at " + place.file + ":" +
             std::to_string(place.line) + ")";
    }
  return "";
}

void run_once(std::function<void()>& action) {
  if (action) std::exchange(action, nullptr)();
}

}  // namespace

void start_product(const Product& product, float* d, const uint32_t* a) {
  const Block& block = *self->warp->block;
  const int number = thread_number(), in_group = number % 128;
  if (number - in_group + 128 > block.warp_count * 32)
    fail(product.place, "a product of thread %d, whose warpgroup has less than 128 threads", number);
  if (!self->products_begun) fail(product.place, "a product without begin_products after the last wait");
  Warpgroup& warpgroup = my_warpgroup();
  const size_t index = self->products++ - warpgroup.first;
  if (index == warpgroup.products.size()) {
    if (product.a.start != nullptr) check_operand(product.a, ROWS, product.a_transposed, "operand A", product.place);
    check_operand(product.b, product.columns, product.b_transposed, "operand B", product.place);
    warpgroup.products.emplace_back();
    warpgroup.products.back().product = product;
  }
  StartedProduct& started = warpgroup.products[index];
  if (!(started.product == product))
    fail(product.place, "another product, or with other operands, than thread %d started at %s:%d", number - in_group,
         started.product.place.file, started.product.place.line);
  started.d[in_group] = d;
  if (a != nullptr) std::memcpy(started.a[in_group], a, sizeof started.a[in_group]);
  if (++started.threads < 128) return;
  if (at_once())
    for (size_t i = 0; i <= index; ++i) compute(warpgroup.products[i], ALL_WARPS);
  drop_done(warpgroup);
  happened(&warpgroup);
}

void commit_products() { self->product_groups.push_back(self->products); }

void wait_for_products(size_t pending, const Place& place) {
  if (pending == 0) self->products_begun = false;
  std::vector<size_t>& groups = self->product_groups;
  if (groups.size() <= pending) return;
  const size_t finished = groups.size() - pending, end = groups[finished - 1];
  Warpgroup& warpgroup = my_warpgroup();
  while (end > warpgroup.first && warpgroup.products[end - 1 - warpgroup.first].threads < 128)
    sleep("wait_for_products", &warpgroup, describe_products, place);
  const unsigned mine = 1u << thread_number() / 32 % 4;
  for (size_t i = 0; i + warpgroup.first < end; ++i) compute(warpgroup.products[i], mine);
  drop_done(warpgroup);
  groups.erase(groups.begin(), groups.begin() + finished);
}

void start_store(const Place& place, std::function<void()> read, std::function<void()> write) {
  Store store{std::move(read), std::move(write), place, false};
  if (at_once()) {
    run_once(store.read);
    run_once(store.write);
  }
  self->stores.push_back(std::move(store));
}

void commit_stores() {
  self->store_groups.push_back(std::move(self->stores));
  self->stores.clear();
}

void wait_for_reads(size_t pending) {
  auto& groups = self->store_groups;
  // a group whose reads were waited for stays: it is written when the thread leaves
  for (size_t i = 0; i + pending < groups.size(); ++i)
    for (Store& store : groups[i]) {
      run_once(store.read);
      store.waited = true;
    }
}

void check_nothing_pending() {
  for (const Store& store : self->stores) fail(store.place, "a thread leaves the kernel without commit_stores");
  for (auto& group : self->store_groups)
    for (Store& store : group) {
      if (!store.waited) fail(store.place, "a thread leaves the kernel before this store has read shared memory");
      run_once(store.write);
    }
  if (!self->product_groups.empty() || self->products_begun)
    fail(self->place, "a thread leaves the kernel without having waited for its products");
}

}  // namespace simt
