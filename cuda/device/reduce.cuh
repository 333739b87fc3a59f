// Sums over a warp and a block, always in the same order.
#pragma once

namespace ss::cuda {

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// Every thread of the block gets the sum. The block is a multiple of 32 threads, at most 1,024.
__device__ inline float block_sum(float x) {
  __shared__ float of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();  // the last call's sums have been read
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : 0.0f);
}

}  // namespace ss::cuda
