// Tiles of a matrix of halves on their way into shared memory, by the copy engine: boxes of 64 columns, rows of
// 128 bytes, swizzled as warpgroup.cuh reads them. One thread asks, warps read. Capability 9.0.
//
//   one thread:    ring.init(readers);  then the block meets
//   asking thread: char* to = ring.place(bytes); ring.ask(to, map, column, row, policy); ...; ring.next();
//   each warp:     ring.wait(); begin_products(); ...; wait_for_products(); ring.release(stage); ring.next();
//
// Sent to several blocks of a cluster at once, tiles come no faster: a block's shared memory takes in some 60 bytes a
// nanosecond, wherever from.
#pragma once
#include <cuda.h>
#include <stdint.h>

#include "weight_ring.cuh"

namespace ss::cuda {

// Before its first use: the copy engine reads it from memory.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}
// What is read again soon, by other blocks.
__device__ __forceinline__ uint64_t read_again() {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// Each side of a ring has its own copy, which counts its own stages.
template <int Stages, int Bytes>
struct TileRing {
  static constexpr int kStages = Stages, kBytes = Bytes;
  static_assert(Bytes % 1024 == 0);
  char* memory;  // [Stages][Bytes], from a multiple of 1024 on
  uint64_t *full, *free;  // [Stages]
  RingPlace at{};

  // readers: warps.
  __device__ __forceinline__ void init(int readers) const {
    for (int i = 0; i < Stages; i++) {
      init_barrier(&full[i], 1);
      init_barrier(&free[i], readers);
    }
  }
  // The asking side: the place of the next tile, once all have read what was there. `bytes` will come.
  __device__ __forceinline__ char* place(uint32_t bytes) const {
    wait_barrier(&free[at.stage], at.parity ^ 1);  // the first time round it is free
    arrive_expecting(&full[at.stage], bytes);
    return memory + at.stage * Bytes;
  }
  __device__ __forceinline__ void ask(char* to, const CUtensorMap& map, int column, int row,
                                      uint64_t policy) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&full[at.stage])), "r"(column), "r"(row), "l"(policy)
        : "memory");
#endif
  }
  // The reading side.
  __device__ __forceinline__ const char* wait() const {
    wait_barrier(&full[at.stage], at.parity);
    return memory + at.stage * Bytes;
  }
  __device__ __forceinline__ void next() { at.next(Stages); }
  // By a whole warp that has read that stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&free[stage]);
  }
};

}  // namespace ss::cuda
