// Picks one of many by their weights, with the threads of a block of 1,024.
#pragma once
#include "reduce.cuh"
#include "scan_block.cuh"

namespace ss::cuda {

// The first i with weight(0) + .. + weight(i) > point(sum of all), else the last whose weight is
// not 0. Each warp sums a piece; the one in whose piece the point lies walks it.
template <class Weight, class Point>
__device__ int pick(int v, Weight weight, Point point_of) {
  __shared__ double of_piece[32];
  __shared__ int picked;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int length = (v + 1024 - 1) / 1024 * 32, begin = warp * length;
  const int end = begin + length < v ? begin + length : v;
  double sum = 0;
  for (int i = begin + lane; i < end; i += 32) sum += weight(i);
  sum = warp_sum(sum);
  __syncthreads();
  if (lane == 0) of_piece[warp] = sum;
  if (threadIdx.x == 0) picked = 0;
  __syncthreads();

  double total = 0;
  for (int i = 0; i < 32; i++) total += of_piece[i];
  double point = point_of(total);
  int piece = 0, last = 0;
  for (; piece < 32 && !(point < of_piece[piece]); piece++) {
    point -= of_piece[piece];
    if (of_piece[piece] > 0) last = piece;
  }
  if (warp == (piece < 32 ? piece : last)) {
    for (int i = begin; i < end; i += 32) {
      const double w = i + lane < end ? weight(i + lane) : 0, through = warp_running_sum(w);
      const unsigned any = __ballot_sync(0xffffffffu, w > 0);
      const unsigned past = __ballot_sync(0xffffffffu, piece < 32 && w > 0 && through > point);
      if (lane == 0 && any) picked = i + (past ? __ffs(past) - 1 : 31 - __clz(any));
      if (past) break;
      point -= __shfl_sync(0xffffffffu, through, 31);
    }
  }
  __syncthreads();
  return picked;
}

}  // namespace ss::cuda
