// The machine that runs the fibers of simt.h. Part of simt.cpp and simt_launch.cpp.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "simt_warpgroup.h"

namespace simt {

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
  bool forward() const { return name_ == "forward"; }
  bool shuffled() const { return name_ == "shuffled"; }

 private:
  std::string name_;
};

struct Launch {
  dim3 grid;
  int threads, shared_bytes;
  int cluster, together;  // blocks
  const std::function<void()>* kernel;
  Order order;
  const void* frame;  // of the launch
};

struct Action {
  const Block* target;
  Place place;
  std::function<void()> run;
};

// One processor: runs a block at a time, or the blocks that must run together.
class Machine {
 public:
  void run(const Launch& launch, int number);
  bool meet_lanes(const char* operation, unsigned mask, const Place& place);
  void meet_block(const Place& place);
  void meet_some(int barrier, int threads, const Place& place);
  void meet_cluster(const Place& place);
  void sleep(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place);
  void yield(const char* operation, const void* awaited, std::string (*describe)(const void*), const Place& place);
  void happened(const void* awaited);
  bool at_once();
  bool all_blocks_run() const { return all_blocks_run_; }
  // Whether `p` is part of the machine: its threads, warps and blocks, a stack, that of the launch too, or a global.
  bool owns(const void* p) const;
  void later(const Block* target, const Place& place, std::function<void()> action);

 private:
  static void entry();
  void prepare(const Launch& launch);
  void prepare_block(const Launch& launch, int which, int number);
  void leave();
  void stop(const char* operation, const Place& place);
  void open_barrier(Block& block);
  void open_cluster(Cluster& cluster);
  void next();
  bool go_on(bool slow);
  bool act();
  [[noreturn]] void deadlock();
  void guard_shared_memory(size_t which, bool check);

  std::vector<Block> blocks_;
  std::vector<Cluster> clusters_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Warpgroup> warpgroups_;
  std::vector<std::vector<unsigned char>> memory_;
  std::vector<int> warp_order_;
  bool lanes_reversed_ = false, forward_ = true, shuffled_ = false, all_blocks_run_ = false;
  int turn_ = 0;   // whose warp's it is, in warp_order_
  int slow_begin_ = 0, slow_end_ = 0;  // warps that run when no other can
  int alive_ = 0;  // threads
  int idle_ = 0;   // rounds in which threads that yielded were all that ran
  std::vector<Thread*> asleep_, yielded_;
  std::vector<Action> actions_;
  std::mt19937 random_;
  Fiber main_;
  const std::function<void()>* kernel_ = nullptr;
  const void* launch_frame_ = nullptr;
  unsigned char* stacks_ = nullptr;
  size_t stack_count_ = 0;
};

// The machine of this processor.
extern thread_local Machine* machine;

}  // namespace simt
