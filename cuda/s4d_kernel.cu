// kernel[c, k] = 2 Re(sum over n of W (1 + E)^k): Vandermonde's matrix with the taps cut into rows of
// kTile, so that k = a kTile + i and the power is one of a row's start times one of kTile. That is a
// product of [l / kTile, 2 n] and [2 n, kTile] for each channel: two multiplications for each state
// and tap, from shared memory. A block makes kTile rows of one channel, some states at a time; the
// powers it needs are made in f64, runs of kRun by one multiplication each.
#include "device/complex.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kTile = 64, kRun = 16, kThreads = 256;
constexpr int kStates = 16;             // at a time
constexpr int kEach = kTile / kRun;     // rows and taps of a thread, in both directions
static_assert(kRun * kRun == kThreads && kStates * kEach * 2 <= kThreads);

__global__ void __launch_bounds__(kThreads)
    make_taps(const float* E, int64_t E_stride, const float* W, int64_t W_stride, int64_t n, int64_t l,
              int64_t blocks, float* kernel) {
  // [real, -imaginary][i], and of rows [real, imaginary][a]; in steps of four floats for one access.
  __shared__ __align__(16) float powers[2 * kStates][kTile], starts[2 * kStates][kTile];
  const int64_t c = blockIdx.x / blocks, first = blockIdx.x % blocks * (kTile * kTile);
  const int column = threadIdx.x % kRun * kEach, row = threadIdx.x / kRun * kEach;
  float sum[kEach][kEach] = {};
  for (int64_t j0 = 0; j0 < n; j0 += kStates) {
    __syncthreads();  // the last states have been read
    const int states = n - j0 < kStates ? static_cast<int>(n - j0) : kStates;
    // A thread makes a run of one state's powers, or of its rows' starts.
    const int run = threadIdx.x % kEach * kRun, j = threadIdx.x / kEach % kStates;
    const bool of_rows = threadIdx.x >= kEach * kStates;
    if (j < states && threadIdx.x < 2 * kEach * kStates) {
      const float *e = E + c * E_stride + 2 * (j0 + j), *w = W + c * W_stride + 2 * (j0 + j);
      const Complex base{1 + static_cast<double>(e[0]), e[1]};
      const Complex step = of_rows ? power(base, kTile) : base;
      Complex x = power(step, run);
      if (of_rows) x = times(times(x, power(base, first)), {2.0 * w[0], 2.0 * w[1]});
      for (int i = 0; i < kRun; i++, x = times(x, step)) {
        const float2 value = rounded(x);
        (of_rows ? starts : powers)[2 * j][run + i] = value.x;
        (of_rows ? starts : powers)[2 * j + 1][run + i] = of_rows ? value.y : -value.y;
      }
    }
    __syncthreads();
    for (int i = 0; i < 2 * states; i++) {
      const float4 a = *reinterpret_cast<const float4*>(&starts[i][row]);
      const float4 b = *reinterpret_cast<const float4*>(&powers[i][column]);
      const float as[kEach] = {a.x, a.y, a.z, a.w}, bs[kEach] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int r = 0; r < kEach; r++)
#pragma unroll
        for (int k = 0; k < kEach; k++) sum[r][k] = fmaf(as[r], bs[k], sum[r][k]);
    }
  }
#pragma unroll
  for (int r = 0; r < kEach; r++) {
    const int64_t k = first + (row + r) * kTile + column;
    float* to = kernel + c * l + k;
    if (k + kEach <= l && l % kEach == 0)
      *reinterpret_cast<float4*>(to) = {sum[r][0], sum[r][1], sum[r][2], sum[r][3]};
    else
      for (int i = 0; i < kEach && k + i < l; i++) to[i] = sum[r][i];
  }
}

}  // namespace

void s4d_kernel(Stream& s, In E, In W, int64_t l, Out kernel) {  // [d, n, 2] -> [d, l]
  const int64_t d = E.size(0), blocks = (l + kTile * kTile - 1) / (kTile * kTile);
  if (d * blocks == 0) return;
  make_taps<<<static_cast<unsigned>(d * blocks), kThreads, 0, s.handle>>>(
      E.data<float>(), E.stride(), W.data<float>(), W.stride(), E.size(1), l, blocks,
      kernel.data<float>());
}
KERNEL(s4d_kernel)

}  // namespace ss::cuda
