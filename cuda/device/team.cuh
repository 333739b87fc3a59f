// The blocks that work on one row together: a cluster where the card has them (capability 9.0),
// where they reach into each other's shared memory, else one block alone.
#pragma once
#include <cooperative_groups.h>
#include <string.h>

#include "cluster.cuh"
#include "weight_ring.cuh"

namespace ss::cuda {

// The warp's sum, in every lane.
__device__ inline unsigned long long warp_sum(unsigned long long x) {
  constexpr unsigned all = 0xffffffffu, part = 0xffffffu;
  const unsigned long long high = __reduce_add_sync(all, static_cast<unsigned>(x >> 48)),
                           middle = __reduce_add_sync(all, static_cast<unsigned>(x >> 24) & part);
  return (high << 48) + (middle << 24) + __reduce_add_sync(all, static_cast<unsigned>(x) & part);
}

template <int Blocks, int Warps>
struct Team {
  static constexpr int kBlocks = Blocks, kWarps = Warps, kThreads = 32 * Warps, kAllWarps = Blocks * Warps;
  static_assert(Blocks <= 32 && Warps <= 32 && (Warps & (Warps - 1)) == 0);

  static __device__ int rank() { return static_cast<int>(blockIdx.x % Blocks); }
  static __device__ unsigned row() { return blockIdx.x / Blocks; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x / 32); }
  static __device__ int lane() { return static_cast<int>(threadIdx.x % 32); }

  // A gate opens once, when all bytes and arrivals have come that its block expects. Who sends does not
  // wait until its stores are seen, which a barrier of the cluster costs: 1,000 to 2,000 clocks.
  using Gate = uint64_t;
  // By one thread of each block, before begin().
  static __device__ void expect_arrivals(Gate& gate, int arrivals) {
    if constexpr (Blocks > 1) init_barrier(&gate, arrivals);
  }
  static __device__ void expect_bytes(Gate& gate, uint32_t bytes) {
    if constexpr (Blocks == 1) return;
    init_barrier(&gate, 1);
    arrive_expecting(&gate, bytes);
  }
  // By all threads: the gates of this block are ready; those of the others are after wait().
  static __device__ void begin() {
    if constexpr (Blocks == 1) return;
    publish_barriers();
    arrive_unordered();
  }
  // x to the same place in block `rank`, whose gate is told.
  template <class T>
  static __device__ __forceinline__ void send(T* to, const T& x, Gate& gate, int rank) {
    if constexpr (Blocks == 1) {
      *to = x;
      return;
    }
    static_assert((sizeof(T) == 16 || sizeof(T) == 8) && alignof(T) == sizeof(T));
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &x, sizeof x);
#if __CUDA_ARCH__ >= 900
    const uint32_t at = in_block(to, rank), told = in_block(&gate, rank);
    if constexpr (sizeof(T) == 16)
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
              at),
          "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(told)
          : "memory");
    else
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(at),
          "r"(words[0]), "r"(words[1]), "r"(told)
          : "memory");
#endif
  }
  // At the gate of block `rank`: one arrival, and so many bytes more to expect.
  static __device__ void announce(Gate& gate, int rank, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1)
      asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(in_block(&gate, rank)),
                   "r"(bytes)
                   : "memory");
#endif
  }
  // One arrival, by which what was written before is seen.
  static __device__ void arrive_at(Gate& gate, int rank) {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1)
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_block(&gate, rank))
                   : "memory");
#endif
  }
  static __device__ void pass(Gate& gate) {
    if constexpr (Blocks == 1)
      __syncthreads();
    else
      wait_barrier(&gate, 0);
  }

  // A barrier of the cluster in two halves: what comes between them may still go on when others are past it.
  // Before the first reach into another block all blocks must have begun.
  static __device__ void arrive() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  }
  // The same, but what was written before need not be seen.
  static __device__ void arrive_unordered() {
#if __CUDA_ARCH__ >= 900
    if constexpr (Blocks > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
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

  // Of every warp of all blocks, by its rank, in the shared memory of each block.
  template <class T>
  using Parts = T[kAllWarps];

  // x of this warp to blocks 0 to `blocks` - 1.
  template <class T>
  static __device__ void share(const T& x, Parts<T>& parts, Gate& gate, int blocks = Blocks) {
    if (lane() < blocks) send(&parts[rank() * Warps + warp()], x, gate, lane());
  }
  // Behind the gate: the sum of all parts, in every lane of a warp.
  template <class T>
  static __device__ T sum(const Parts<T>& parts) {
    T x{};
#pragma unroll
    for (int i = 0; i < (kAllWarps + 31) / 32; i++)
      if (kAllWarps % 32 == 0 || lane() + 32 * i < kAllWarps) x = x + parts[lane() + 32 * i];
    return x.over_warp();
  }
};

}  // namespace ss::cuda
