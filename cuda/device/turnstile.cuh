// A turnstile in shared memory (an mbarrier): it opens, turn after turn, each time as many threads have
// arrived as it was made for. Who arrives does not wait; what it wrote or read before comes before
// what is done by who passes.
#pragma once
#include <stdint.h>

namespace ss::cuda {

struct Turnstile {
  uint64_t word;

  __device__ void make(int threads) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at()), "r"(threads) : "memory");
  }
  // Every thread for itself: a warp's one arrival after __syncwarp() is not faster, and racecheck
  // does not understand it.
  __device__ void arrive() {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(at()) : "memory");
  }
  // As arrive, and from the next turn on it opens without this thread.
  __device__ void leave() {
    asm volatile("{ .reg .b64 t; mbarrier.arrive_drop.shared.b64 t, [%0]; }" ::"r"(at()) : "memory");
  }
  // Until turn number `turn` is over; only its lowest bit counts.
  __device__ void pass(unsigned turn) {
    uint32_t open = 0;
    while (!open) {
#if __CUDA_ARCH__ >= 900
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
          : "=r"(open)
          : "r"(at()), "r"(turn & 1)
          : "memory");
#else
      asm volatile(
          "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
          : "=r"(open)
          : "r"(at()), "r"(turn & 1)
          : "memory");
#endif
    }
  }

 private:
  __device__ uint32_t at() { return static_cast<uint32_t>(__cvta_generic_to_shared(&word)); }
};

}  // namespace ss::cuda
