// Barriers, boxes and clusters of Hopper on the CPU.
#include "hopper/ptx.h"

#include <memory>

namespace ema {
namespace simt_hopper {
namespace {

constexpr uint16_t NEVER_INITIALISED = 0xFFFF;
constexpr int MOST_BYTES = (1 << 20) - 1;  // that a barrier can count

ptrdiff_t offset_of(const void* shared) {
  return static_cast<const unsigned char*>(shared) - simt::self->warp->block->shared;
}

std::string describe_barrier(const void* awaited) {
  const Barrier& barrier = *static_cast<const Barrier*>(awaited);
  return "(at byte " + std::to_string(offset_of(awaited)) + " of shared memory: parity " + std::to_string(barrier.phase) +
         ", " + std::to_string(barrier.missing) + " of " + std::to_string(barrier.arrivals) + " arrivals and " +
         std::to_string(barrier.bytes) + " bytes are missing)";
}

void end_phase(Barrier* barrier) {
  if (barrier->missing > 0 || barrier->bytes > 0) return;
  barrier->missing = barrier->arrivals;
  barrier->phase ^= 1;
  simt::happened(barrier);
}

void land(Barrier* barrier, int bytes, const Place& place) {
  const int left = barrier->bytes - bytes;
  if (barrier->arrivals == NEVER_INITIALISED) simt::fail(place, "a copy whose barrier nobody has initialised");
  if (left < -MOST_BYTES || (left < 0 && barrier->missing == 0))
    simt::fail(place, "%d bytes more have landed than the barrier expects", -left);
  barrier->bytes = left;
  end_phase(barrier);
}

// The same address in another block of the cluster.
template <class T>
T* moved_to(const Block& block, T* p) {
  return reinterpret_cast<T*>(block.shared + offset_of(p));
}

Block& peer(int rank, const Place& place) {
  const simt::Cluster& cluster = *simt::self->warp->block->cluster;
  if (rank < 0 || rank >= cluster.size) simt::fail(place, "block %d of a cluster of %d", rank, cluster.size);
  Block& block = cluster.blocks[rank];
  if (block.alive == 0) simt::fail(place, "block %d of the cluster has left the kernel", rank);
  return block;
}

void check_place(const void* shared, int bytes, int alignment, const char* what, const Place& place) {
  const Block& block = *simt::self->warp->block;
  if (!block.contains(shared, bytes))
    simt::fail(place, "%s from byte %td to %td of %d bytes of shared memory", what, offset_of(shared),
               offset_of(shared) + bytes, block.shared_bytes);
  if (reinterpret_cast<uintptr_t>(shared) % alignment != 0)
    simt::fail(place, "%s at byte %td of shared memory: expected a multiple of %d", what, offset_of(shared), alignment);
}

// The innermost coordinate of a box: one between two units of 16 bytes is an illegal instruction.
void check_start(const int (&start)[4], const Place& place) {
  simt::check_waited("a box", place);
  if (start[0] % 8 != 0) simt::fail(place, "a box from column %d on: expected a multiple of 8", start[0]);
}

void check_bytes(const void* global, int bytes, const char* what, const Place& place) {
  simt_ptx::check_global(global, what, place);
  if (bytes <= 0 || bytes % 16 != 0) simt::fail(place, "%s of %d bytes: expected a multiple of 16", what, bytes);
}

// Calls `line(byte of the box, memory, how many)` for every line of a box of which a part lies within the matrix.
template <class Line>
void for_lines(const TensorMap& map, const int (&start)[4], Line line) {
  for (int i = 2; i < 4; ++i)
    if (start[i] < 0 || start[i] >= map.sizes[i]) return;
  const int first = std::max(0, -start[0]), last = std::min(map.columns, map.sizes[0] - start[0]);
  if (first >= last) return;
  unsigned char* matrix = map.data + start[2] * map.strides[2] + start[3] * map.strides[3];
  for (int r = std::max(0, -start[1]); r < map.lines && start[1] + r < map.sizes[1]; ++r)
    line(map.line_bytes() * r + 2 * first, matrix + (start[1] + r) * map.strides[1] + 2 * (start[0] + first), 2 * (last - first));
}

// Copies bytes of a line of a box to or from the places of its permuted units.
template <class CopyPiece>
void for_units(unsigned char* box, int line, int offset, int bytes, CopyPiece copy) {
  for (int done = 0; done < bytes;) {
    const int piece = std::min(16 - (offset + done) % 16, bytes - done);
    copy(reinterpret_cast<unsigned char*>(simt::permuted(box + offset + done, line)), done, piece);
    done += piece;
  }
}

void fill_box(unsigned char* box, const TensorMap& map, const int (&start)[4]) {
  std::memset(box, 0, map.bytes());
  for_lines(map, start, [&](int offset, const unsigned char* memory, int bytes) {
    for_units(box, map.line_bytes(), offset, bytes, [&](unsigned char* unit, int done, int piece) {
      std::memcpy(unit, memory + done, piece);
    });
  });
}

// Of a barrier that is used: somebody has initialised and published it.
void check_ready(const Barrier* barrier, const Block& block, const Place& place) {
  if (barrier->arrivals == NEVER_INITIALISED) simt::fail(place, "nobody has initialised this barrier");
  for (const auto& [unpublished, thread] : block.unpublished)
    if (unpublished == barrier)
      simt::fail(place, "thread %td has initialised this barrier without publish_barriers behind it", thread - block.threads);
}

struct Start {
  int at[4];
};

std::string describe_count(const void* awaited) {
  return "(it is " + std::to_string(*static_cast<const unsigned*>(awaited)) + ")";
}

}  // namespace

void check_barrier(const Barrier* barrier, const Place& place) { check_place(barrier, 8, 8, "a barrier", place); }

void publish_barriers() {
  auto& unpublished = simt::self->warp->block->unpublished;
  auto mine = [](const auto& entry) { return entry.second == simt::self; };
  unpublished.erase(std::remove_if(unpublished.begin(), unpublished.end(), mine), unpublished.end());
}

void init_barrier(Barrier* barrier, int arrivals, const Place& place) {
  check_barrier(barrier, place);
  if (arrivals < 1 || arrivals >= NEVER_INITIALISED) simt::fail(place, "a barrier of %d arrivals", arrivals);
  barrier->arrivals = barrier->missing = static_cast<uint16_t>(arrivals);
  barrier->bytes = 0;
  barrier->phase = 0;
  simt::self->warp->block->unpublished.emplace_back(barrier, simt::self);
}

void arrive_in(const Block& block, Barrier* barrier, int bytes, const Place& place) {
  check_ready(barrier, block, place);
  if (barrier->missing == 0)
    simt::fail(place, "more than the %d arrivals of the barrier at byte %td of shared memory", barrier->arrivals,
               reinterpret_cast<const unsigned char*>(barrier) - block.shared);
  const int expected = barrier->bytes + bytes;
  if (bytes < 0 || expected > MOST_BYTES) simt::fail(place, "a barrier cannot count %d bytes", expected);
  barrier->bytes = expected;
  if (--barrier->missing == 0 && expected < 0)
    simt::fail(place, "%d bytes more have landed than the barrier expects", -expected);
  end_phase(barrier);
}

void arrive(Barrier* barrier, int bytes, const Place& place) {
  check_barrier(barrier, place);
  arrive_in(*simt::self->warp->block, barrier, bytes, place);
}

void arrive_at(Barrier* barrier, int rank, const Place& place) {
  check_barrier(barrier, place);
  Block& block = peer(rank, place);
  arrive_in(block, moved_to(block, barrier), 0, place);
}

bool has_ended(const Barrier* barrier, uint32_t parity, const Place& place) {
  check_barrier(barrier, place);
  check_ready(barrier, *simt::self->warp->block, place);
  if (barrier->phase == parity) simt::yield("has_ended", barrier, describe_barrier, place);
  return barrier->phase != parity;
}

void wait(const Barrier* barrier, uint32_t parity, const Place& place) {
  check_barrier(barrier, place);
  if (parity > 1) simt::fail(place, "parity %u: expected 0 or 1", parity);
  check_ready(barrier, *simt::self->warp->block, place);
  while (barrier->phase == parity) simt::sleep("wait", barrier, describe_barrier, place);
}

void copy_box(unsigned blocks, void* shared, const TensorMap& map, Barrier* barrier, const int (&start)[4],
              const Place& place) {
  check_barrier(barrier, place);
  check_place(shared, map.bytes(), 128, "a box", place);
  check_start(start, place);
  if (blocks == 0) simt::fail(place, "a box for no block");
  for_lines(map, start, [&](int, const unsigned char* line, int bytes) {
    simt::hardware_reads_memory(line, bytes, "a box", place);
  });
  for (int rank = 0; rank < 16; ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    Block& block = peer(rank, place);
    unsigned char* box = moved_to(block, static_cast<unsigned char*>(shared));
    Barrier* counting = moved_to(block, barrier);
    check_ready(counting, block, place);
    simt::hardware_writes(block, box, map.bytes(), "a box", place);
    std::memset(box, 0xFF, map.bytes());
    const Start from{{start[0], start[1], start[2], start[3]}};
    simt::later(&block, place, [=] {
      fill_box(box, map, from.at);
      land(counting, map.bytes(), place);
    });
  }
}

void copy_bytes(void* shared, const void* global, int bytes, Barrier* barrier, const Place& place) {
  check_barrier(barrier, place);
  check_bytes(global, bytes, "a copy", place);
  check_place(shared, bytes, 16, "a copy", place);
  check_ready(barrier, *simt::self->warp->block, place);
  simt::hardware_writes(*simt::self->warp->block, shared, bytes, "a copy", place);
  simt::hardware_reads_memory(global, bytes, "a copy", place);
  std::memset(shared, 0xFF, bytes);
  simt::later(simt::self->warp->block, place, [=] {
    std::memcpy(shared, global, bytes);
    land(barrier, bytes, place);
  });
}

void store_box(const TensorMap& map, const void* shared, const int (&start)[4], const Place& place) {
  check_place(shared, map.bytes(), 128, "a box", place);
  check_start(start, place);
  simt::hardware_reads(*simt::self->warp->block, shared, map.bytes(), "a box", place);
  auto box = static_cast<unsigned char*>(const_cast<void*>(shared));
  auto copy = std::make_shared<std::vector<unsigned char>>(map.bytes());
  const Start to{{start[0], start[1], start[2], start[3]}};
  auto read = [=] {
    for (int offset = 0; offset < map.bytes(); offset += 16)
      std::memcpy(copy->data() + offset, reinterpret_cast<void*>(simt::permuted(box + offset, map.line_bytes())), 16);
  };
  auto write = [=] {
    for_lines(map, to.at, [&](int offset, unsigned char* memory, int bytes) {
      std::memcpy(memory, copy->data() + offset, bytes);
    });
  };
  simt::start_store(place, read, write);
}

void store_matrices_transposed(StoredLine** lanes) {
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < 32; ++lane)
      for (int v = 0; v < 2; ++v) {
        const auto number = static_cast<uint16_t>(lanes[lane]->r[i] >> 16 * v);
        auto* line = static_cast<unsigned char*>(lanes[8 * i + lane % 4 * 2 + v]->line);
        std::memcpy(line + lane / 4 * 2, &number, 2);
      }
}

const void* at_peer(const void* shared, int bytes, int rank, const Place& place) {
  check_place(shared, bytes, bytes, "a load from another block", place);
  return moved_to(peer(rank, place), shared);
}

void count_up(unsigned* number) {
  __atomic_fetch_add(number, 1, __ATOMIC_SEQ_CST);
  simt::happened(number);
}

void wait_for_count(const unsigned* number, unsigned target, const Place& place) {
  if (!simt::all_blocks_run()) simt::fail(place, "blocks that wait for each other want a cooperative launch");
  while (__atomic_load_n(number, __ATOMIC_SEQ_CST) < target)
    simt::sleep("wait_for_count", number, describe_count, place);
}

}  // namespace simt_hopper

// Refuses what the driver would refuse.
cudaError_t make_tensor_map(TensorMap* map, const Matrices& matrices, int lines, int columns) {
  auto bytes = [](int64_t stride, int size) { return size > 1 ? 2 * stride : 16; };
  const TensorMap made{static_cast<unsigned char*>(const_cast<void*>(matrices.data)),
                       {2, bytes(matrices.line_stride, matrices.lines), bytes(matrices.head_stride, matrices.heads),
                        bytes(matrices.batch_stride, matrices.batch)},
                       {matrices.columns, matrices.lines, matrices.heads, matrices.batch},
                       lines, columns};
  bool refused = made.data == nullptr || reinterpret_cast<uintptr_t>(made.data) % 16 != 0 || lines < 1 || lines > 256 ||
                 (columns != 64 && columns != 32);
  for (int i = 0; i < 4; ++i) refused |= made.sizes[i] < 1;
  for (int i = 1; i < 4; ++i)
    refused |= made.strides[i] % 16 != 0 || made.strides[i] < 0 || made.strides[i] >= int64_t{1} << 40;
  if (refused) return cudaErrorInvalidValue;
  *map = made;
  return cudaSuccess;
}

}  // namespace ema
