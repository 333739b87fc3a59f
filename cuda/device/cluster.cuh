// Blocks of a cluster (compute capability 9.0): they run at the same time and write each other's
// shared memory. Compiled for older cards the calls do nothing; the kernels are not launched there.
#pragma once
#include <stdint.h>

namespace ss::cuda {

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// What a thread wrote before it arrives, in any block's shared memory, is seen by all after they
// have waited.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Where an address in this block's shared memory lies in that of block `rank`.
__device__ __forceinline__ uint32_t in_block(uint32_t address, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(address), "r"(rank));
#endif
  return address;
}
__device__ __forceinline__ uint32_t in_block(const void* p, unsigned rank) {
  return in_block(static_cast<uint32_t>(__cvta_generic_to_shared(p)), rank);
}
__device__ __forceinline__ void store_in_block(uint32_t address, uint32_t v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
#endif
}
__device__ __forceinline__ void store_in_block(uint32_t address, float2 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v.x), "f"(v.y)
               : "memory");
#endif
}
__device__ __forceinline__ void store_in_block(uint32_t address, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x),
               "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
#endif
}

}  // namespace ss::cuda
