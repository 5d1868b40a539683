// Who wrote what without telling the hardware that works beside the threads: copies of boxes and products see what a
// thread wrote to shared memory after its fence_copies, and to memory after its fence_copies_of_memory. A copy over what a
// thread has read in shared memory wants its fence_copies too; only the last reader is known. And who reads or writes
// memory before it has waited for the kernels in front of its own, where these may still run. The kernels of csrc/hopper
// are compiled with a call for every access to memory (emulation.py), but g++ makes none where a call returns a struct to
// memory: EMA_DEVICE is inlined, a lambda may not be. Part of the machine behind simt.h.
#pragma once
#include "simt.h"

namespace simt {

// The thread that runs, or another one of its block, writes `bytes` to shared memory or to memory.
void wrote(const void* p, size_t bytes, const Thread& by);
// The thread that runs reads `bytes`; only shared memory of its block counts.
void has_read(const void* p, size_t bytes);
// By the thread that runs.
void fence_copies();
void fence_copies_of_memory();

// The hardware reads, or writes, `bytes` of the shared memory of a block: whoever wrote there has fenced it, and before
// it writes also whoever read.
void hardware_reads(const Block& block, const void* shared, size_t bytes, const char* what, const Place& place);
void hardware_writes(Block& block, const void* shared, size_t bytes, const char* what, const Place& place);
// The same of memory, for what was written there since the blocks that run together began.
void hardware_reads_memory(const void* p, size_t bytes, const char* what, const Place& place);

// When a block, or the blocks that run together, begin.
void forget_writes(Block& block);
void forget_memory_writes();

}  // namespace simt
