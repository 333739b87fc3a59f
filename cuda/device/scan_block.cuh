// Running sums over a block of up to 1,024 threads, always in the same order.
#pragma once

namespace ss::cuda {

template <class T>
__device__ inline T warp_running_sum(T x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(0xffffffffu, x, step);
    if (lane >= step) x += before;
  }
  return x;
}

// The sum of x over this thread and those before it.
template <class T>
__device__ inline T block_running_sum(T x) {
  __shared__ T of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x = warp_running_sum(x);
  __syncthreads();  // the last call's sums have been read
  if (lane == 31) of_warp[warp] = x;
  __syncthreads();
  const T through = warp_running_sum(lane < warps ? of_warp[lane] : T{0});
  const T before = __shfl_sync(0xffffffffu, through, warp > 0 ? warp - 1 : 0);
  return warp > 0 ? before + x : x;
}

}  // namespace ss::cuda
