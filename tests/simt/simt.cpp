// The machine behind simt.h: fibers and their meetings.
#include "simt_machine.h"
#include "simt_watch.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdarg>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

__thread Thread* self = nullptr;
thread_local Machine* machine = nullptr;

namespace {

constexpr int GUARD = 4096;            // bytes before and behind shared memory, and below a stack
constexpr unsigned char POISON = 0xFF;  // NaN in every type
// stacks with a page that shows an overflow: those of a block, as all blocks run the same code. Every page splits a
// mapping in two, and a process that has its 65530 mappings gets no more memory
constexpr size_t GUARDED = 1024;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 512 << 10;
#else
constexpr size_t STACK = 128 << 10;
#endif

}  // namespace

bool Machine::owns(const void* p) const {
  constexpr size_t most_of_launch = 64 << 10;  // bytes of the stack that it starts from
  Dl_info image;
  auto within = [p](const void* begin, size_t bytes) {
    return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(begin) < bytes;
  };
  auto holds = [&](const auto& objects) { return within(objects.data(), objects.size() * sizeof objects[0]); };
  return holds(threads_) || holds(warps_) || holds(blocks_) || within(stacks_, stack_count_ * STACK) ||
         within(launch_frame_, most_of_launch) || within(&self, sizeof self) || dladdr(p, &image) != 0;
}

void Machine::prepare(const Launch& launch) {
  const size_t blocks = launch.together, count = blocks * launch.threads;
  if (stack_count_ < count) {
#ifdef __SANITIZE_ADDRESS__
    // fibers do not return: what they marked would still be marked when the addresses serve somebody else
    if (stacks_ != nullptr) ASAN_UNPOISON_MEMORY_REGION(stacks_, stack_count_ * STACK);
#endif
    if (stacks_ != nullptr) munmap(stacks_, stack_count_ * STACK);
    void* memory = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("simt: no memory for stacks");
      std::abort();
    }
    stacks_ = static_cast<unsigned char*>(memory);
    stack_count_ = count;
    for (size_t i = 0; i < std::min(count, GUARDED); ++i) mprotect(stacks_ + i * STACK, GUARD, PROT_NONE);
  }
  launch_frame_ = launch.frame;
  threads_.resize(count);
  warps_.resize(blocks * ((launch.threads + 31) / 32));
  warpgroups_.resize(blocks * ((launch.threads + 127) / 128));
  blocks_.resize(blocks);
  clusters_.resize(blocks / launch.cluster);
  if (memory_.size() < blocks) memory_.resize(blocks);
  for (size_t which = 0; which < blocks; ++which) {
    std::vector<unsigned char>& memory = memory_[which];
#ifdef __SANITIZE_ADDRESS__
    if (!memory.empty()) ASAN_UNPOISON_MEMORY_REGION(memory.data(), memory.size());
#endif
    memory.resize(launch.shared_bytes + 2 * GUARD + 1024);
    auto start = reinterpret_cast<uintptr_t>(memory.data()) + GUARD;
    blocks_[which].shared = reinterpret_cast<unsigned char*>((start + 1023) & ~uintptr_t{1023});
    blocks_[which].shared_bytes = launch.shared_bytes;
  }
}

void Machine::guard_shared_memory(size_t which, bool check) {
  const Block& block = blocks_[which];
  std::vector<unsigned char>& memory = memory_[which];
  unsigned char* end = block.shared + block.shared_bytes;
  unsigned char* last = memory.data() + memory.size();
#ifdef __SANITIZE_ADDRESS__
  if (!check) ASAN_POISON_MEMORY_REGION(memory.data(), block.shared - memory.data());
  if (!check) ASAN_POISON_MEMORY_REGION(end, last - end);
#else
  auto touched = [](unsigned char value) { return value != POISON; };
  if (check && (std::any_of(memory.data(), block.shared, touched) || std::any_of(end, last, touched)))
    fail(self->place, "somebody in this block wrote outside its %d bytes of shared memory", block.shared_bytes);
#endif
}

// Block `number` of the grid as the block `which` of those that run together.
void Machine::prepare_block(const Launch& launch, int which, int number) {
  const unsigned columns = launch.grid.x, rows = launch.grid.y, n = number;
  const int threads = launch.threads, warps = (threads + 31) / 32;
  Block& block = blocks_[which];
  block.index = uint3{n % columns, n / columns % rows, n / columns / rows};
  block.cluster = &clusters_[which / launch.cluster];
  block.rank = which % launch.cluster;
  block.alive = threads;
  block.waiting = 0;
  block.threads = &threads_[which * threads];
  block.warps = &warps_[which * warps];
  block.warp_count = warps;
  block.warpgroups = &warpgroups_[which * ((threads + 127) / 128)];
  std::fill(std::begin(block.barriers), std::end(block.barriers), NamedBarrier{});
  std::vector<unsigned char>& memory = memory_[which];
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(memory.data(), memory.size());
#endif
  std::memset(memory.data(), POISON, memory.size());
  guard_shared_memory(which, false);
  forget_writes(block);
  block.unpublished.clear();
  for (int w = 0; w < warps; ++w) {
    int lanes = std::min(32, threads - 32 * w);
    unsigned all = lanes == 32 ? ~0u : (1u << lanes) - 1;
    block.warps[w] = Warp{&block, block.threads + 32 * w, all, all, 0, {}};
  }
  for (int i = 0; i < threads; ++i) {
    Thread& thread = block.threads[i];
    const unsigned x = blockDim.x, y = blockDim.y, t = i;
    thread.index = uint3{t % x, t / x % y, t / x / y};
    thread.lane = i % 32;
    thread.warp = &block.warps[i / 32];
    thread.operation = nullptr;
    thread.place = Place::here();
    thread.describe = nullptr;
    thread.copies.clear();
    thread.group_sizes.clear();
    thread.stores.clear();
    thread.store_groups.clear();
    thread.products = 0;
    thread.product_groups.clear();
    thread.products_begun = false;
    thread.fences = thread.memory_fences = 0;
    size_t shift = thread.lane * 832;  // stacks at equal distances would share few lines of the cache
    unsigned char* top = stacks_ + (which * threads + i + 1) * STACK - shift;
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(top - 4096, 4096);  // the thread before left its kernel without returning
#endif
    thread.fiber.prepare(top, STACK - shift - 4096, entry);
  }
}

// `number` counts what runs together.
void Machine::run(const Launch& launch, int number) {
  prepare(launch);
  kernel_ = launch.kernel;
  alive_ = launch.together * launch.threads;
  for (Warpgroup& warpgroup : warpgroups_) warpgroup.reset();
  for (size_t i = 0; i < clusters_.size(); ++i)
    clusters_[i] = Cluster{&blocks_[i * launch.cluster], launch.cluster, launch.cluster * launch.threads, 0};
  forget_memory_writes();
  for (int which = 0; which < launch.together; ++which)
    prepare_block(launch, which, number * launch.together + which);
  forward_ = launch.order.forward();
  shuffled_ = launch.order.shuffled();
  all_blocks_run_ = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z == static_cast<uint64_t>(launch.together);
  random_.seed(number);
  warp_order_ = launch.order(static_cast<int>(warps_.size()), number);
  lanes_reversed_ = launch.order.lanes_reversed(number);
  turn_ = 0;
  // in shuffled order a block, or a warp of a single one, comes last whenever others can go on
  const int warps = static_cast<int>(warps_.size()), slow = launch.together > 1 ? warps / launch.together : 1;
  slow_begin_ = shuffled_ ? static_cast<int>(random_() % (warps / slow)) * slow : 0;
  slow_end_ = shuffled_ ? slow_begin_ + slow : 0;
  const Warp& first = warps_[warp_order_[0]];
  self = &first.threads[lanes_reversed_ ? 31 - __builtin_clz(first.ready) : 0];
  main_.switch_to(self->fiber);
  for (size_t which = 0; which < blocks_.size(); ++which) guard_shared_memory(which, true);
  self = nullptr;
}

void Machine::entry() {
  (*machine->kernel_)();
  machine->leave();
}

void Machine::leave() {
  Warp& warp = *self->warp;
  Block& block = *warp.block;
  check_nothing_pending();
  warp.alive &= ~(1u << self->lane);
  warp.ready &= ~(1u << self->lane);
  --block.alive;
  --block.cluster->alive;
  if (block.alive == 0)
    for (const Action& action : actions_)
      if (action.target == &block) fail(action.place, "the block has left and nobody has waited for this copy");
  if (--alive_ == 0) self->fiber.switch_to(main_);
  if (block.waiting > 0 && block.waiting == block.alive) open_barrier(block);
  if (block.cluster->waiting > 0 && block.cluster->waiting == block.cluster->alive) open_cluster(*block.cluster);
  next();
}

// Lets the next thread run: of the same warp while one can, since warps meet often.
void Machine::next() {
  if (shuffled_ && !actions_.empty() && random_() % 64 == 0) act();
  do {
    if (go_on(false)) return;
  } while (act());
  if (!go_on(true)) deadlock();
}

// Lets a thread run, if one can: first of those warps that are not slow.
bool Machine::go_on(bool slow) {
  const int count = static_cast<int>(warps_.size());
  for (int i = 0; i < count; ++i, turn_ = turn_ + 1 == count ? 0 : turn_ + 1) {
    const int number = warp_order_[turn_];
    const Warp& warp = warps_[number];
    if (warp.ready == 0 || (!slow && number >= slow_begin_ && number < slow_end_)) continue;
    Thread* before = self;
    self = &warp.threads[lanes_reversed_ ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready)];
    if (self != before) before->fiber.switch_to(self->fiber);
    return true;
  }
  return false;
}

// What the machine can do when no thread can go on.
bool Machine::act() {
  if (!actions_.empty()) {
    const size_t which = shuffled_ ? random_() % actions_.size() : actions_.size() - 1;
    const std::function<void()> run = std::move(actions_[which].run);
    actions_.erase(actions_.begin() + which);
    run();
    idle_ = 0;
    return true;
  }
  if (yielded_.empty() || ++idle_ > 1000) return false;
  for (const Thread* thread : yielded_) thread->warp->ready |= 1u << thread->lane;
  yielded_.clear();
  return true;
}

bool Machine::at_once() { return forward_ || (shuffled_ && random_() % 4 == 0); }

void Machine::later(const Block* target, const Place& place, std::function<void()> action) {
  if (forward_) return action();
  actions_.push_back({target, place, std::move(action)});
}

// This thread cannot go on.
void Machine::stop(const char* operation, const Place& place) {
  self->operation = operation;
  self->place = place;
  self->mask = 0;
  self->describe = nullptr;
  self->warp->ready &= ~(1u << self->lane);
}

void Machine::sleep(const char* operation, const void* awaited, std::string (*describe)(const void*),
                    const Place& place) {
  stop(operation, place);
  self->awaited = awaited;
  self->describe = describe;
  asleep_.push_back(self);
  if (shuffled_ && self->warp->ready == 0) turn_ = random_() % warps_.size();
  next();
}

void Machine::yield(const char* operation, const void* awaited, std::string (*describe)(const void*),
                    const Place& place) {
  stop(operation, place);
  self->awaited = awaited;
  self->describe = describe;
  yielded_.push_back(self);
  next();
}

void Machine::happened(const void* awaited) {
  idle_ = 0;
  size_t kept = 0;
  for (Thread* thread : asleep_) {
    if (thread->awaited == awaited)
      thread->warp->ready |= 1u << thread->lane;
    else
      asleep_[kept++] = thread;
  }
  asleep_.resize(kept);
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
  Block& block = *self->warp->block;
  stop("__syncthreads", place);
  if (++block.waiting == block.alive) {
    open_barrier(block);
    turn_ = 0;
  }
  next();
}

void Machine::open_barrier(Block& block) {
  const Thread* first = nullptr;
  for (int w = 0; w < block.warp_count; ++w) {
    Warp& warp = block.warps[w];
    for (unsigned left = warp.alive; left != 0; left &= left - 1) {
      Thread& thread = warp.threads[__builtin_ctz(left)];
      if (first == nullptr) first = &thread;
      if (!(thread.place == first->place))
        fail(first->place, "__syncthreads here in thread %td, but thread %td is at %s:%d", first - block.threads,
             &thread - block.threads, thread.place.file, thread.place.line);
    }
    warp.ready = warp.alive;
  }
  block.waiting = 0;
}

void Machine::meet_some(int barrier, int threads, const Place& place) {
  if (barrier < 1 || barrier > 15 || threads < 32 || threads % 32 != 0)
    fail(place, "meet(%d, %d): barriers are 1 to 15, and whole warps meet", barrier, threads);
  NamedBarrier& named = self->warp->block->barriers[barrier];
  if (named.waiting > 0 && named.threads != threads)
    fail(place, "meet(%d, %d), while others meet there as %d at %s:%d", barrier, threads, named.threads,
         named.place.file, named.place.line);
  named.threads = threads;
  named.place = place;
  if (++named.waiting < threads) return sleep("meet", &named, nullptr, place);
  named.waiting = 0;
  happened(&named);
}

void Machine::meet_cluster(const Place& place) {
  Cluster& cluster = *self->warp->block->cluster;
  if (++cluster.waiting < cluster.alive) return sleep("meet_cluster", &cluster, nullptr, place);
  open_cluster(cluster);
}

void Machine::open_cluster(Cluster& cluster) {
  cluster.waiting = 0;
  happened(&cluster);
}

void Machine::deadlock() {
  for (const Block& block : blocks_)
    for (const Warp* warp = block.warps; warp < block.warps + block.warp_count; ++warp)
      for (unsigned left = warp->alive; left != 0; left &= left - 1) {
        Thread& thread = warp->threads[__builtin_ctz(left)];
        const Thread* before = left == warp->alive ? nullptr : &thread - 1;
        if (before != nullptr && before->place == thread.place) continue;
        self = &thread;  // for `describe`
        const std::string what = thread.describe == nullptr ? "" : thread.describe(thread.awaited);
        std::fprintf(stderr, "simt: block (%u, %u, %u), from thread %td on: %s%s%s at %s:%d\n", block.index.x,
                     block.index.y, block.index.z, &thread - block.threads, thread.operation, what.empty() ? "" : " ",
                     what.c_str(), thread.place.file, thread.place.line);
      }
  fail(self->place, "deadlock: %d of %d threads are alive and all of them wait", alive_,
       static_cast<int>(threads_.size()));
}

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
void meet_some(int barrier, int threads, const Place& place) { machine->meet_some(barrier, threads, place); }
void meet_cluster(const Place& place) { machine->meet_cluster(place); }
void sleep(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place) {
  machine->sleep(operation, awaited, describe, place);
}
void yield(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place) {
  machine->yield(operation, awaited, describe, place);
}
void happened(const void* awaited) { machine->happened(awaited); }
bool at_once() { return machine->at_once(); }
bool all_blocks_run() { return machine->all_blocks_run(); }
void later(const Block* target, const Place& place, std::function<void()> action) {
  machine->later(target, place, std::move(action));
}

}  // namespace simt
