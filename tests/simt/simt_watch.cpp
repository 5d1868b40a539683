// Accesses of the kernels, as the compiler reports them for its detector of races, which is not linked.
#include "simt_watch.h"

#include <unordered_map>

#include "simt_machine.h"

namespace simt {
namespace {

constexpr int WORD = 4, UNIT = 16, FENCE_BITS = 21;  // bytes of shared memory and of memory that one entry is for
constexpr unsigned FENCES = (1u << FENCE_BITS) - 1;
constexpr uintptr_t STACK = 512 << 10;

struct MemoryWriter {
  const Thread* thread;
  unsigned fences;
};
thread_local std::unordered_map<uintptr_t, MemoryWriter> memory_writers;

size_t first_word(const Block& block, const void* shared) {
  return (static_cast<const unsigned char*>(shared) - block.shared) / WORD;
}
size_t end_word(const Block& block, const void* shared, size_t bytes) {
  return (static_cast<const unsigned char*>(shared) + bytes - block.shared + WORD - 1) / WORD;
}

// A thread of a block and its fences so far.
unsigned access(const Block& block, const Thread& by) {
  return static_cast<unsigned>(&by - block.threads + 1) << FENCE_BITS | (by.fences & FENCES);
}
// The thread of an access without a fence behind it, or null.
const Thread* unfenced(const Block& block, unsigned access) {
  if (access == 0) return nullptr;
  const Thread& thread = block.threads[(access >> FENCE_BITS) - 1];
  return (thread.fences & FENCES) == (access & FENCES) ? &thread : nullptr;
}

void check_fenced(const Block& block, const std::vector<unsigned>& accesses, const void* shared, size_t bytes,
                  const char* what, const char* did, const Place& place) {
  for (size_t word = first_word(block, shared); word < end_word(block, shared, bytes); ++word)
    if (const Thread* thread = unfenced(block, accesses[word]))
      fail(place, "%s at byte %zu of shared memory, which thread %td %s without fence_copies behind it", what, WORD * word,
           thread - block.threads, did);
}

void clear(const Block& block, std::vector<unsigned>& accesses, const void* shared, size_t bytes) {
  std::fill(accesses.begin() + first_word(block, shared), accesses.begin() + end_word(block, shared, bytes), 0);
}

}  // namespace

void wrote(const void* p, size_t bytes, const Thread& by) {
  Block& block = *by.warp->block;
  if (block.contains(p, 1)) {
    const unsigned writer = access(block, by);
    const size_t end = std::min(end_word(block, p, bytes), block.writers.size());
    for (size_t word = first_word(block, p); word < end; ++word) block.writers[word] = writer, block.readers[word] = 0;
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address - reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) < STACK) return;
  for (uintptr_t unit = address / UNIT; unit <= (address + bytes - 1) / UNIT; ++unit)
    memory_writers[unit] = {&by, by.memory_fences};
}

void has_read(const void* p, size_t bytes) {
  Block& block = *self->warp->block;
  if (!block.contains(p, 1)) return;
  const unsigned reader = access(block, *self);
  const size_t end = std::min(end_word(block, p, bytes), block.readers.size());
  for (size_t word = first_word(block, p); word < end; ++word) block.readers[word] = reader;
}

void fence_copies() { ++self->fences; }
void fence_copies_of_memory() { ++self->fences, ++self->memory_fences; }

void hardware_reads(const Block& block, const void* shared, size_t bytes, const char* what, const Place& place) {
  check_fenced(block, block.writers, shared, bytes, what, "wrote", place);
}

void hardware_writes(Block& block, const void* shared, size_t bytes, const char* what, const Place& place) {
  hardware_reads(block, shared, bytes, what, place);
  check_fenced(block, block.readers, shared, bytes, what, "read", place);
  clear(block, block.writers, shared, bytes);
  clear(block, block.readers, shared, bytes);
}

void hardware_reads_memory(const void* p, size_t bytes, const char* what, const Place& place) {
  if (memory_writers.empty()) return;
  const auto address = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t unit = address / UNIT; unit <= (address + bytes - 1) / UNIT; ++unit) {
    const auto found = memory_writers.find(unit);
    if (found == memory_writers.end()) continue;
    const Thread& thread = *found->second.thread;
    if (thread.memory_fences == found->second.fences)
      fail(place, "%s from memory that thread %td wrote without fence_copies_of_memory behind it", what,
           &thread - thread.warp->block->threads);
  }
}

void forget_writes(Block& block) {
  for (auto* accesses : {&block.writers, &block.readers}) accesses->assign((block.shared_bytes + WORD - 1) / WORD, 0);
}
void forget_memory_writes() { memory_writers.clear(); }

namespace {

// Memory is for a kernel when those in front of it have ended. Of the place only the last meeting before is known.
void check_memory(const void* p, const char* what) {
  if (self->has_waited || self->warp->block->contains(p, 1) || machine->owns(p)) return;
  check_waited(what, self->place.file != nullptr ? self->place : Place{"no meeting", 0});
}

void report_read(const void* p, size_t bytes) {
  if (self == nullptr) return;
  check_memory(p, "a read of memory");
  has_read(p, bytes);
}
void report_write(const void* p, size_t bytes) {
  if (self == nullptr) return;
  check_memory(p, "a write to memory");
  wrote(p, bytes, *self);
}

}  // namespace
}  // namespace simt

#define EMA_SIMT_ACCESSES(bytes) \
  void __tsan_read##bytes(void* p) { simt::report_read(p, bytes); } \
  void __tsan_unaligned_read##bytes(void* p) { simt::report_read(p, bytes); } \
  void __tsan_write##bytes(void* p) { simt::report_write(p, bytes); } \
  void __tsan_unaligned_write##bytes(void* p) { simt::report_write(p, bytes); }

#pragma GCC visibility push(hidden)
extern "C" {
EMA_SIMT_ACCESSES(1)
EMA_SIMT_ACCESSES(2)
EMA_SIMT_ACCESSES(4)
EMA_SIMT_ACCESSES(8)
EMA_SIMT_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { simt::report_read(p, bytes); }
void __tsan_write_range(void* p, size_t bytes) { simt::report_write(p, bytes); }
void __tsan_init() {}
}
#pragma GCC visibility pop
#undef EMA_SIMT_ACCESSES
