// Functions with a stack of their own that hand the processor to each other.
#pragma once
#include <cstdint>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simt {

#ifdef __x86_64__
// A handful of instructions; what ucontext does on the way (signal masks) would take most of the time of a test.
class Fiber {
 public:
  // `entry` runs on the stack that ends at `top` when somebody switches here; it must never return.
  void prepare(unsigned char* top, size_t, void (*entry)()) {
    auto* frame = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
    *--frame = nullptr;  // where `entry` would return to
    *--frame = reinterpret_cast<void*>(entry);
    frame -= 6;  // the registers that a callee keeps
    stack_pointer_ = frame;
  }
  void switch_to(Fiber& next) { exchange(&stack_pointer_, next.stack_pointer_); }

 private:
  [[gnu::naked, gnu::noinline]] static void exchange(void** /*save*/, void* /*load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
        "movq %rsp, (%rdi); movq %rsi, %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  void* stack_pointer_ = nullptr;
};
#else
class Fiber {
 public:
  void prepare(unsigned char* top, size_t size, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = top - size;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Fiber& next) { swapcontext(&context_, &next.context_); }

 private:
  ucontext_t context_;
};
#endif

}  // namespace simt
