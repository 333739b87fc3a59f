// What a kernel started by launch() (launch.cuh) does about the kernels before it, which may all
// still be running: the one before it may itself have said let_next_start() while it waited.
//
//  1. Every thread calls wait_for_previous() before it reads or writes any global memory: not only
//     what the kernel before wrote, but also what one long before wrote or still reads, and memory
//     that was freed and handed out again. So every kernel ends after all kernels before it.
//  2. A thread that reads and writes nothing may leave without waiting, but not a whole kernel: the
//     next one waits for this one alone, and learns by it that those before have ended.
//  3. Before the wait, weights may only be asked into the L2 cache (prefetch_weights). They are no
//     exception to rule 1: a weight may have been cast or copied two kernels ago. The L2 is where
//     such a write arrives too, so a line fetched too early is corrected and never stale.
//     But where the kernel before is always one that says let_next_start() after its own wait, all before that
//     one has ended when this one starts: what it does not write may then be read, past the L1 (step_states.cuh).
//  4. Data of earlier kernels is never read as __restrict__, __ldg or ld.global.nc: the compiler may
//     move such loads above the wait.
//  5. let_next_start() may come at any time, before the wait too, since of rule 1; at once is best
//     where the next kernel has weights to ask for and fits beside this one.
// A kernel launched with <<<>>> starts when all before it have ended, and one that never says
// let_next_start() says it by ending.
#pragma once
#include <stdint.h>

namespace ss::cuda {

// Until all earlier kernels have ended and what they wrote is seen.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// This block no longer holds back the next kernel's start.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for `bytes` from p on, a multiple of 16 at such an address in a live tensor. Changes nothing
// but time.
__device__ __forceinline__ void prefetch_weights(const void* p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#endif
}

}  // namespace ss::cuda
