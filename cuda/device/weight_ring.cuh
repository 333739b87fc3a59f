// Weights on their way from memory into a ring of shared memory, by the bulk copy engine: one warp
// asks for tiles as room comes free, the others use them in the same order. A tile is 8 rows of one
// matrix by some columns; a row's place ends in 64 unused bytes, so that 8 rows are read 16 bytes a
// lane without bank conflicts. Compute capability 9.0.
#pragma once
#include <stdint.h>

namespace ss::cuda {

constexpr int kTileRows = 8;
constexpr int kRowGap = 64;  // bytes; rows are multiples of 128

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier that `arrivals` threads and the bytes that are expected complete, over and over.
__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
#endif
}
// Seen by the copy engine.
__device__ __forceinline__ void publish_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// Until the phase of that parity is complete.
__device__ __forceinline__ void wait_barrier(uint64_t* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#endif
}

// Weights are read once a step: they leave the L2 before what is read again.
__device__ __forceinline__ uint64_t read_once() {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes,
                                          uint64_t* barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], "
      "%2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

constexpr int kMostStages = 24;

// A place in the ring, and how often it has been passed.
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

struct Ring {
  char* memory;
  uint64_t *full, *free;  // [stages]
  int stages, pitch;      // pitch: bytes of a row with its gap
  RingPlace at{};         // of the next tile; each side counts its own

  static __host__ __device__ constexpr int stage_bytes(int columns) {
    return kTileRows * (2 * columns + kRowGap);
  }
  __device__ char* tile() const { return memory + at.stage * kTileRows * pitch; }

  // By one thread, before the block's barrier.
  __device__ void init(int readers) const {
    for (int i = 0; i < stages; i++) {
      init_barrier(&full[i], 1);
      init_barrier(&free[i], readers);
    }
    publish_barriers();
  }
  // The using side: each thread waits, reads, and gives the tile back for itself. One arrival of a
  // warp after __syncwarp() is not faster, and racecheck does not understand it.
  __device__ void wait() const { wait_barrier(&full[at.stage], at.parity); }
  __device__ void give_back() {
    arrive(&free[at.stage]);
    at.next(stages);
  }
};

// The asking side, by one whole warp. No more than `most` tiles are under way at a time: all that a
// ring holds would stand in the way of the blocks' words, for many microseconds.
struct RingFiller {
  Ring ring;
  int most;
  int asked = 0;
  RingPlace due{};  // the oldest that may be under way

  // `rows` rows of `bytes` each; lane i gives where row i begins.
  __device__ void fill(const void* from, int rows, int bytes, uint64_t policy) {
    const int lane = threadIdx.x % 32, stage = ring.at.stage;
    wait_barrier(&ring.free[stage], ring.at.parity ^ 1);  // the first time round it is free
    if (asked == most) {
      wait_barrier(&ring.full[due.stage], due.parity);
      due.next(ring.stages);
    } else {
      asked++;
    }
    if (lane == 0) arrive_expecting(&ring.full[stage], static_cast<uint32_t>(rows * bytes));
    __syncwarp();
    if (lane < rows)
      copy_bulk(ring.tile() + lane * ring.pitch, from, static_cast<uint32_t>(bytes),
                &ring.full[stage], policy);
    ring.at.next(ring.stages);
  }
};

}  // namespace ss::cuda
