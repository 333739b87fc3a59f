// Sums and maxima over a warp and a block, always in the same order.
#pragma once
#include <math.h>

namespace ss::cuda {

template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// Every thread of the block gets the result. The block is a multiple of 32 threads, at most 1,024.
template <class T>
__device__ inline T block_sum(T x) {
  __shared__ T of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();  // the last call's sums have been read
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : T{0});
}
__device__ inline float block_max(float x) {
  __shared__ float of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x = warp_max(x);
  __syncthreads();  // the last call's maxima have been read
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? of_warp[lane] : -INFINITY);
}

}  // namespace ss::cuda
