// The second half of a sum over rows: parts that blocks have left, added in order.
#pragma once
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kSumRows = 8;  // parts that are added side by side

// to[j] = the sum of parts[p * width + j] over `count` parts.
__global__ void __launch_bounds__(256)
    sum_parts(const float* parts, int64_t count, int64_t width, int64_t d, float* to) {
  __shared__ float sums[kSumRows][32];
  let_next_start();
  wait_for_previous();
  const int column = threadIdx.x % 32, side = threadIdx.x / 32;
  const int64_t j = blockIdx.x * int64_t{32} + column;
  float total = 0;
#pragma unroll 16
  for (int64_t p = side; p < count; p += kSumRows)
    if (j < d) total += parts[p * width + j];
  sums[side][column] = total;
  __syncthreads();
  if (side > 0 || j >= d) return;
#pragma unroll
  for (int i = 1; i < kSumRows; i++) total += sums[i][column];
  to[j] = total;
}

inline void add_parts(Stream& s, const float* parts, int64_t count, int64_t width, int64_t d,
                      float* to) {
  if (d > 0)
    launch(s.handle, sum_parts, {static_cast<unsigned>((d + 31) / 32), 256}, parts, count, width, d, to);
}

}  // namespace
}  // namespace ss::cuda
