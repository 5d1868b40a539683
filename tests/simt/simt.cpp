// The machine behind simt.h: fibers, their meetings, and the blocks of a grid over a few processors.
#include "simt.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

__thread Thread* self = nullptr;

namespace {

constexpr int GUARD = 4096;            // bytes before and behind shared memory
constexpr unsigned char POISON = 0xFF;  // NaN in every type
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 512 << 10;
#else
constexpr size_t STACK = 128 << 10;
#endif

// EMA_SIMT_ORDER applied to 0 .. count - 1.
class Order {
 public:
  Order() {
    const char* text = std::getenv("EMA_SIMT_ORDER");
    name_ = text == nullptr || *text == 0 ? "forward" : text;
    if (name_ == "forward" || name_ == "reverse" || name_ == "shuffled") return;
    std::fprintf(stderr, "EMA_SIMT_ORDER=%s: expected forward, reverse or shuffled\n", text);
    std::abort();
  }
  std::vector<int> operator()(int count, unsigned seed) const {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (name_ == "reverse") std::reverse(order.begin(), order.end());
    if (name_ == "shuffled") std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
  }
  bool lanes_reversed(unsigned seed) const { return name_ == "reverse" || (name_ == "shuffled" && seed % 2 == 1); }

 private:
  std::string name_;
};

struct Launch {
  dim3 grid;
  int threads, shared_bytes;
  const std::function<void()>* kernel;
  Order order;
};

// One processor: runs a block at a time.
class Machine {
 public:
  void run(const Launch& launch, int number);
  bool meet_lanes(const char* operation, unsigned mask, const Place& place);
  void meet_block(const Place& place);

 private:
  static void entry();
  void prepare(const Launch& launch);
  void leave();
  void open_barrier();
  void next();
  [[noreturn]] void deadlock();
  void guard_shared_memory(bool check);

  Block block_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> warp_order_;
  bool lanes_reversed_ = false;
  int turn_ = 0;  // whose warp's it is, in warp_order_
  Fiber main_;
  const std::function<void()>* kernel_ = nullptr;
  unsigned char* stacks_ = nullptr;
  size_t stack_count_ = 0;
  std::vector<unsigned char> memory_;
};

thread_local Machine* machine = nullptr;

void Machine::prepare(const Launch& launch) {
  const size_t count = launch.threads;
  if (stack_count_ < count) {
    if (stacks_ != nullptr) munmap(stacks_, stack_count_ * STACK);
    void* memory = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("simt: no memory for stacks");
      std::abort();
    }
    stacks_ = static_cast<unsigned char*>(memory);
    stack_count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(stacks_ + i * STACK, 4096, PROT_NONE);  // an overflow shows
  }
  threads_.resize(count);
  warps_.resize((count + 31) / 32);
#ifdef __SANITIZE_ADDRESS__
  if (!memory_.empty()) ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size());
#endif
  memory_.resize(launch.shared_bytes + 2 * GUARD + 1024);
  auto start = reinterpret_cast<uintptr_t>(memory_.data()) + GUARD;
  block_.shared = reinterpret_cast<unsigned char*>((start + 1023) & ~uintptr_t{1023});
  block_.shared_bytes = launch.shared_bytes;
}

void Machine::guard_shared_memory(bool check) {
  unsigned char* end = block_.shared + block_.shared_bytes;
  unsigned char* last = memory_.data() + memory_.size();
#ifdef __SANITIZE_ADDRESS__
  if (!check) ASAN_POISON_MEMORY_REGION(memory_.data(), block_.shared - memory_.data());
  if (!check) ASAN_POISON_MEMORY_REGION(end, last - end);
#else
  auto touched = [](unsigned char value) { return value != POISON; };
  if (check && (std::any_of(memory_.data(), block_.shared, touched) || std::any_of(end, last, touched)))
    fail(self->place, "somebody in this block wrote outside its %d bytes of shared memory", block_.shared_bytes);
#endif
}

void Machine::run(const Launch& launch, int number) {
  prepare(launch);
  kernel_ = launch.kernel;
  const unsigned columns = launch.grid.x, rows = launch.grid.y, n = number;
  block_.index = uint3{n % columns, n / columns % rows, n / columns / rows};
  block_.alive = launch.threads;
  block_.waiting = 0;
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size());
#endif
  std::memset(memory_.data(), POISON, memory_.size());
  guard_shared_memory(false);
  for (int w = 0; w < static_cast<int>(warps_.size()); ++w) {
    int lanes = std::min(32, launch.threads - 32 * w);
    unsigned all = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps_[w] = Warp{&block_, &threads_[32 * w], all, all, 0, {}};
  }
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = threads_[i];
    const unsigned x = blockDim.x, y = blockDim.y, t = i;
    thread.index = uint3{t % x, t / x % y, t / x / y};
    thread.lane = i % 32;
    thread.warp = &warps_[i / 32];
    thread.operation = nullptr;
    thread.place = Place::here();
    thread.copies.clear();
    thread.group_sizes.clear();
    size_t shift = thread.lane * 832;  // stacks at equal distances would share few lines of the cache
    unsigned char* top = stacks_ + (i + 1) * STACK - shift;
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(top - 4096, 4096);  // the thread before left its kernel without returning
#endif
    thread.fiber.prepare(top, STACK - shift - 4096, entry);
  }
  warp_order_ = launch.order(static_cast<int>(warps_.size()), number);
  lanes_reversed_ = launch.order.lanes_reversed(number);
  turn_ = 0;
  const Warp& first = warps_[warp_order_[0]];
  self = &first.threads[lanes_reversed_ ? 31 - __builtin_clz(first.ready) : 0];
  main_.switch_to(self->fiber);
  guard_shared_memory(true);
}

void Machine::entry() {
  (*machine->kernel_)();
  machine->leave();
}

void Machine::leave() {
  Warp& warp = *self->warp;
  warp.alive &= ~(1u << self->lane);
  warp.ready &= ~(1u << self->lane);
  if (--block_.alive == 0) self->fiber.switch_to(main_);
  if (block_.waiting > 0 && block_.waiting == block_.alive) open_barrier();
  next();
}

// Lets the next thread run: of the same warp while one can, since warps meet often.
void Machine::next() {
  const int count = static_cast<int>(warps_.size());
  for (int i = 0; i < count; ++i, turn_ = turn_ + 1 == count ? 0 : turn_ + 1) {
    const Warp& warp = warps_[warp_order_[turn_]];
    if (warp.ready == 0) continue;
    Thread* before = self;
    self = &warp.threads[lanes_reversed_ ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready)];
    if (self != before) before->fiber.switch_to(self->fiber);
    return;
  }
  deadlock();
}

bool Machine::meet_lanes(const char* operation, unsigned mask, const Place& place) {
  Warp& warp = *self->warp;
  const unsigned mine = 1u << self->lane;
  if ((mask & mine) == 0) fail(place, "%s with mask %08x, which lacks its own lane", operation, mask);
  if (mask & ~warp.alive) fail(place, "%s with mask %08x: only lanes %08x are left", operation, mask, warp.alive);
  self->operation = operation;
  self->place = place;
  self->mask = mask;
  if (const unsigned waiting = warp.waiting & mask; waiting != 0) {
    const Thread& other = warp.threads[__builtin_ctz(waiting)];
    if (other.mask != mask || !(other.place == place))
      fail(place, "%s with mask %08x, while lane %d is in %s with mask %08x at %s:%d", operation, mask, other.lane,
           other.operation, other.mask, other.place.file, other.place.line);
  }
  warp.waiting |= mine;
  if ((warp.waiting & mask) != mask) {
    warp.ready &= ~mine;
    next();
    return false;
  }
  warp.waiting &= ~mask;
  warp.ready |= mask;
  return true;
}

void Machine::meet_block(const Place& place) {
  Warp& warp = *self->warp;
  self->operation = "__syncthreads";
  self->place = place;
  self->mask = 0;
  warp.ready &= ~(1u << self->lane);
  if (++block_.waiting == block_.alive) {
    open_barrier();
    turn_ = 0;
  }
  next();
}

void Machine::open_barrier() {
  const Thread* first = nullptr;
  for (Warp& warp : warps_) {
    for (unsigned left = warp.alive; left != 0; left &= left - 1) {
      Thread& thread = warp.threads[__builtin_ctz(left)];
      if (first == nullptr) first = &thread;
      if (!(thread.place == first->place))
        fail(first->place, "__syncthreads here in thread %d, but thread %d is at %s:%d", static_cast<int>(first - &threads_[0]),
             static_cast<int>(&thread - &threads_[0]), thread.place.file, thread.place.line);
    }
    warp.ready = warp.alive;
  }
  block_.waiting = 0;
}

void Machine::deadlock() {
  for (Warp& warp : warps_)
    for (unsigned left = warp.alive; left != 0; left &= left - 1) {
      const Thread& thread = warp.threads[__builtin_ctz(left)];
      const Thread* before = left == warp.alive ? nullptr : &thread - 1;
      if (before != nullptr && before->place == thread.place) continue;
      std::fprintf(stderr, "simt: from thread %d on: %s at %s:%d\n", static_cast<int>(&thread - &threads_[0]),
                   thread.operation, thread.place.file, thread.place.line);
    }
  fail(self->place, "deadlock: %d of %d threads are alive and all of them wait", block_.alive,
       static_cast<int>(threads_.size()));
}

}  // namespace

void fail(const Place& place, const char* format, ...) {
  const uint3 block = self->warp->block->index, thread = self->index;
  std::fprintf(stderr, "simt: block (%u, %u, %u), thread (%u, %u, %u), %s:%d: ", block.x, block.y, block.z, thread.x,
               thread.y, thread.z, place.file, place.line);
  va_list args;
  va_start(args, format);
  std::vfprintf(stderr, format, args);
  va_end(args);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::abort();
}

bool meet_lanes(const char* operation, unsigned mask, const Place& place) {
  return machine->meet_lanes(operation, mask, place);
}
void meet_block(const Place& place) { machine->meet_block(place); }

namespace {

int processors() {
  const char* text = std::getenv("EMA_SIMT_THREADS");
  if (text != nullptr && *text != 0) return std::max(1, std::atoi(text));
  return std::thread::hardware_concurrency() > 1 ? 2 : 1;
}

cudaError_t check(dim3 grid, dim3 block, int shared_bytes) {
  constexpr int most_shared = 227 << 10;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  return shared_bytes < 0 || shared_bytes > most_shared ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, int shared_bytes, const std::function<void()>& kernel) {
  static std::mutex one_launch;
  static std::vector<std::unique_ptr<Machine>> machines;
  std::lock_guard<std::mutex> lock(one_launch);
  if (cudaError_t error = check(grid, block, shared_bytes)) return error;
  blockDim = block;
  gridDim = grid;
  const Launch launch{grid, static_cast<int>(block.x * block.y * block.z), shared_bytes, &kernel, Order()};
  const std::vector<int> blocks = launch.order(static_cast<int>(grid.x * grid.y * grid.z), 0);
  const size_t workers = std::min<size_t>(processors(), blocks.size());
  while (machines.size() < workers) machines.push_back(std::make_unique<Machine>());
  std::atomic<size_t> taken{0};
  auto work = [&](Machine* mine) {
    machine = mine;
    for (size_t i; (i = taken++) < blocks.size();) mine->run(launch, blocks[i]);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < workers; ++i) others.emplace_back(work, machines[i].get());
  work(machines[0].get());
  for (std::thread& other : others) other.join();
  return cudaSuccess;
}

}  // namespace simt

// What the host code asks the runtime for.
extern "C" const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "another error";
  }
}
extern "C" cudaError_t cudaSetDevice(int ordinal) { return ordinal == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
