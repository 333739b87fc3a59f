// The blocks that work on one row together: a cluster where the card has them (capability 9.0),
// where they reach into each other's shared memory, else one block alone.
#pragma once
#include <cooperative_groups.h>
#include <string.h>

namespace ss::cuda {

template <class T>
__device__ T shuffled(T x, int lane) {
  static_assert(sizeof(T) % 4 == 0);
  int words[sizeof(T) / 4];
  memcpy(words, &x, sizeof x);
#pragma unroll
  for (int& word : words) word = __shfl_xor_sync(0xffffffffu, word, lane);
  memcpy(&x, words, sizeof x);
  return x;
}

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

  // x + .. over all 1,024 threads of all blocks, always in the same order. `of_warp` and `of_block`
  // are shared memory that nothing else uses. Loops are loops: code that runs once must be fetched.
  template <class T>
  static __device__ T sum(T x, T (&of_warp)[32], T (&of_block)[Blocks]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int step = 16; step > 0; step /= 2) x = x + shuffled(x, step);
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    if (warp == 0) {
      x = of_warp[lane];
#pragma unroll 1
      for (int step = 16; step > 0; step /= 2) x = x + shuffled(x, step);
      if (lane < Blocks) *of(of_block + rank(), lane) = x;
    }
    sync();
    x = of_block[lane % Blocks];
#pragma unroll 1
    for (int step = Blocks / 2; step > 0; step /= 2) x = x + shuffled(x, step);
    return x;
  }
};

}  // namespace ss::cuda
