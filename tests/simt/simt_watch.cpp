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

// The thread whose write to a word is not fenced, or null.
const Thread* unfenced(const Block& block, size_t word) {
  const unsigned writer = block.writers[word];
  if (writer == 0) return nullptr;
  const Thread& thread = block.threads[(writer >> FENCE_BITS) - 1];
  return (thread.fences & FENCES) == (writer & FENCES) ? &thread : nullptr;
}

}  // namespace

void wrote(const void* p, size_t bytes, const Thread& by) {
  Block& block = *by.warp->block;
  if (block.contains(p, 1)) {
    const unsigned writer = static_cast<unsigned>(&by - block.threads + 1) << FENCE_BITS | (by.fences & FENCES);
    const size_t end = std::min(end_word(block, p, bytes), block.writers.size());
    for (size_t word = first_word(block, p); word < end; ++word) block.writers[word] = writer;
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address - reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) < STACK) return;
  for (uintptr_t unit = address / UNIT; unit <= (address + bytes - 1) / UNIT; ++unit)
    memory_writers[unit] = {&by, by.memory_fences};
}

void fence_copies() { ++self->fences; }
void fence_copies_of_memory() { ++self->fences, ++self->memory_fences; }

void hardware_reads(const Block& block, const void* shared, size_t bytes, const char* what, const Place& place) {
  for (size_t word = first_word(block, shared); word < end_word(block, shared, bytes); ++word)
    if (const Thread* thread = unfenced(block, word))
      fail(place, "%s at byte %zu of shared memory, which thread %td wrote without fence_copies behind it", what,
           WORD * word, thread - block.threads);
}

void hardware_writes(Block& block, const void* shared, size_t bytes, const char* what, const Place& place) {
  hardware_reads(block, shared, bytes, what, place);
  std::fill(block.writers.begin() + first_word(block, shared), block.writers.begin() + end_word(block, shared, bytes), 0);
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

void forget_writes(Block& block) { block.writers.assign((block.shared_bytes + WORD - 1) / WORD, 0); }
void forget_memory_writes() { memory_writers.clear(); }

namespace {

// Memory is for a kernel when those in front of it have ended. Of the place only the last meeting before is known.
void check_memory(const void* p, const char* what) {
  if (self->has_waited || self->warp->block->contains(p, 1) || machine->owns(p)) return;
  check_waited(what, self->place.file != nullptr ? self->place : Place{"no meeting", 0});
}

void report_read(const void* p) {
  if (self != nullptr) check_memory(p, "a read of memory");
}
void report_write(const void* p, size_t bytes) {
  if (self == nullptr) return;
  check_memory(p, "a write to memory");
  wrote(p, bytes, *self);
}

}  // namespace
}  // namespace simt

#define EMA_SIMT_ACCESSES(bytes) \
  void __tsan_read##bytes(void* p) { simt::report_read(p); } \
  void __tsan_unaligned_read##bytes(void* p) { simt::report_read(p); } \
  void __tsan_write##bytes(void* p) { simt::report_write(p, bytes); } \
  void __tsan_unaligned_write##bytes(void* p) { simt::report_write(p, bytes); }

#pragma GCC visibility push(hidden)
extern "C" {
EMA_SIMT_ACCESSES(1)
EMA_SIMT_ACCESSES(2)
EMA_SIMT_ACCESSES(4)
EMA_SIMT_ACCESSES(8)
EMA_SIMT_ACCESSES(16)
void __tsan_read_range(void* p, size_t) { simt::report_read(p); }
void __tsan_write_range(void* p, size_t bytes) { simt::report_write(p, bytes); }
void __tsan_init() {}
}
#pragma GCC visibility pop
#undef EMA_SIMT_ACCESSES
