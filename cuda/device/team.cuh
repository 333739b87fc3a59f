// The blocks that work on one row together: a cluster where the card has them (capability 9.0),
// where they reach into each other's shared memory, else one block alone.
#pragma once
#include <cooperative_groups.h>

namespace ss::cuda {

template <int Blocks>
struct Team {
  static __device__ int rank() { return static_cast<int>(blockIdx.x % Blocks); }
  static __device__ unsigned row() { return blockIdx.x / Blocks; }

  // Every thread calls begin(), and await_all() before it first reaches into another block: by then
  // all blocks have begun.
  static __device__ void begin() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  }
  static __device__ void await_all() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) cooperative_groups::this_cluster().barrier_wait();
#endif
  }
  // All threads of all blocks have come here, and see what the others wrote before.
  static __device__ void sync() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }
  // Where `own`, in this block's shared memory, lies in that of block `rank`.
  template <class T>
  static __device__ T* of(T* own, int rank) {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) return cooperative_groups::this_cluster().map_shared_rank(own, rank);
#endif
    return own;
  }
};

}  // namespace ss::cuda
