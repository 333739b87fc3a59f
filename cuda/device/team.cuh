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

// The warp's sum, in every lane.
__device__ inline unsigned long long warp_sum(unsigned long long x) {
  constexpr unsigned all = 0xffffffffu, part = 0xffffffu;
  const unsigned long long high = __reduce_add_sync(all, static_cast<unsigned>(x >> 48)),
                           middle = __reduce_add_sync(all, static_cast<unsigned>(x >> 24) & part);
  return (high << 48) + (middle << 24) + __reduce_add_sync(all, static_cast<unsigned>(x) & part);
}

template <int Blocks, int Warps>
struct Team {
  static constexpr int kBlocks = Blocks, kWarps = Warps, kThreads = 32 * Warps;

  static __device__ int rank() { return static_cast<int>(blockIdx.x % Blocks); }
  static __device__ unsigned row() { return blockIdx.x / Blocks; }

  // A barrier in two halves: what comes between them may still go on when others are past it. Before
  // the first reach into another block all blocks must have begun.
  static __device__ void arrive() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  }
  static __device__ void wait() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) {
      cooperative_groups::this_cluster().barrier_wait();
      return;
    }
#endif
    __syncthreads();
  }
  // All threads of all blocks have come here, and see what the others wrote before.
  static __device__ void sync() {
    arrive();
    wait();
  }
  // Where `own`, in this block's shared memory, lies in that of block `rank`.
  template <class T>
  static __device__ T* of(T* own, int rank) {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) return cooperative_groups::this_cluster().map_shared_rank(own, rank);
#endif
    return own;
  }

  // What each warp has, in the shared memory of every block. For one sum: a block may still read it.
  template <class T>
  using Parts = T[Blocks * Warps];

  // x + .. over all threads of all blocks, in each of them; `parts` then holds the sums of the warps
  // by their rank. A barrier for all threads. Loops are loops: code that runs once must be fetched.
  template <class T>
  static __device__ T sum(T x, Parts<T>& parts) {
    constexpr int all = Blocks * Warps;
    static_assert((Warps & (Warps - 1)) == 0 && Blocks <= 32);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int step = 16; step > 0; step /= 2) x = x + shuffled(x, step);
    if (lane < Blocks) *of(&parts[rank() * Warps + warp], lane) = x;
    sync();
    x = parts[lane % all];
#pragma unroll 1
    for (int i = lane + 32; i < all; i += 32) x = x + parts[i];
#pragma unroll 1
    for (int step = (all < 32 ? all : 32) / 2; step > 0; step /= 2) x = x + shuffled(x, step);
    return x;
  }

  // The same for what has over_warp(), the warp's sum in every lane, and more to add than a few words:
  // `of_warp` is this block's own.
  template <class T>
  static __device__ T sum_blocks(T x, T (&of_warp)[Warps], T (&of_block)[Blocks]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    x = x.over_warp();
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    if (warp == 0) {
      x = (lane < Warps ? of_warp[lane] : T{}).over_warp();
      if (lane < Blocks) *of(of_block + rank(), lane) = x;
    }
    sync();
    x = of_block[0];
#pragma unroll
    for (int i = 1; i < Blocks; i++) x = x + of_block[i];
    return x;
  }
};

}  // namespace ss::cuda
