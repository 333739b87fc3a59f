// dW = 2 P* and dE = 2 (W Q)*, with P = sum over k of dkernel(k) (1 + E)^k and Q = sum over k of
// k dkernel(k) (1 + E)^(k - 1). Taps are cut into rows of kTile, as in s4d_kernel: of each row, from
// powers 0 to kTile - 1 and their derivatives in shared memory, come its own P and Q in f32, four
// multiplications for each tap and state; (1 + E)^(a kTile), in f64, puts row a into its place. A
// block takes kStates states of a channel and kRows rows at a time; a thread one state and four rows.
#include "device/complex.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kTile = 64, kStates = 16, kGroups = 16, kEach = 4, kThreads = kStates * kGroups;
constexpr int kRows = kGroups * kEach, kPad = 4;

// A power of 1 + E, and its derivative.
struct Turn {
  Complex power, slope;
};
__device__ Turn times(Turn a, Turn b) {
  const Complex x = times(a.power, b.slope), y = times(a.slope, b.power);
  return {times(a.power, b.power), {x.re + y.re, x.im + y.im}};
}
__device__ Turn turn(Complex base, int64_t k) {
  if (k == 0) return {{1, 0}, {}};
  const Complex before = power(base, k - 1);
  return {times(before, base), {static_cast<double>(k) * before.re, static_cast<double>(k) * before.im}};
}

struct Given {
  const float *E, *W, *dkernel;
  int64_t E_stride, W_stride, stride, n, l;
  unsigned groups;  // of a channel's states
  float2 *dE, *dW;
};

__global__ void __launch_bounds__(kThreads) sum_taps(const Given g) {
  __shared__ float4 powers[kTile][kStates];
  __shared__ __align__(16) float taps[kTile][kRows + kPad];
  __shared__ Turn sums[kGroups][kStates];
  const int64_t c = blockIdx.x / g.groups;
  const int own = threadIdx.x % kStates, group = threadIdx.x / kStates;
  const int64_t j = blockIdx.x % g.groups * kStates + own;
  const float* e = g.E + c * g.E_stride + 2 * j;
  const Complex base = j < g.n ? Complex{1 + static_cast<double>(e[0]), e[1]} : Complex{};

  Turn x = turn(base, group * kEach);
  for (int i = 0; i < kEach; i++, x = times(x, Turn{base, {1, 0}})) {
    const float2 p = rounded(x.power), q = rounded(x.slope);
    powers[group * kEach + i][own] = {p.x, p.y, q.x, q.y};
  }
  const Turn row = turn(base, kTile), block = turn(base, kRows * kTile);
  Turn start = turn(base, int64_t{group} * kEach * kTile), total{};
  for (int64_t k0 = 0; k0 < g.l; k0 += kRows * kTile, start = times(start, block)) {
    __syncthreads();  // the last taps have been read
    for (int i = threadIdx.x; i < kRows * kTile; i += kThreads)
      taps[i % kTile][i / kTile] = k0 + i < g.l ? g.dkernel[c * g.stride + k0 + i] : 0.0f;
    __syncthreads();
    if (k0 + group * kEach * kTile >= g.l) continue;
    float sum[kEach][4] = {};
#pragma unroll 4
    for (int i = 0; i < kTile; i++) {
      const float4 p = powers[i][own];
      const float4 t = *reinterpret_cast<const float4*>(&taps[i][group * kEach]);
      const float ts[kEach] = {t.x, t.y, t.z, t.w}, ps[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
      for (int r = 0; r < kEach; r++)
#pragma unroll
        for (int part = 0; part < 4; part++) sum[r][part] = fmaf(ts[r], ps[part], sum[r][part]);
    }
    Turn at = start;
#pragma unroll
    for (int r = 0; r < kEach; r++, at = times(at, row)) {
      const Turn of_row = times(at, Turn{{sum[r][0], sum[r][1]}, {sum[r][2], sum[r][3]}});
      total.power.re += of_row.power.re, total.power.im += of_row.power.im;
      total.slope.re += of_row.slope.re, total.slope.im += of_row.slope.im;
    }
  }
  sums[group][own] = total;
  __syncthreads();
  if (group > 0 || j >= g.n) return;
  for (int r = 1; r < kGroups; r++) {
    const Turn& more = sums[r][own];
    total.power.re += more.power.re, total.power.im += more.power.im;
    total.slope.re += more.slope.re, total.slope.im += more.slope.im;
  }
  const float* w = g.W + c * g.W_stride + 2 * j;
  const Complex turned = times({2.0 * w[0], 2.0 * w[1]}, total.slope);
  g.dW[c * g.n + j] = rounded({2 * total.power.re, -2 * total.power.im});
  g.dE[c * g.n + j] = rounded({turned.re, -turned.im});
}

}  // namespace

// [d, n, 2], twice, and [d, l] -> [d, n, 2], twice
void s4d_kernel_backward(Stream& s, In E, In W, In dkernel, Out dE, Out dW) {
  const int64_t d = E.size(0), n = E.size(1), groups = (n + kStates - 1) / kStates;
  if (d * groups == 0) return;
  const Given g{E.data<float>(), W.data<float>(), dkernel.data<float>(), E.stride(), W.stride(),
                dkernel.stride(), n, dkernel.size(1), static_cast<unsigned>(groups),
                reinterpret_cast<float2*>(dE.data<float>()), reinterpret_cast<float2*>(dW.data<float>())};
  sum_taps<<<static_cast<unsigned>(d * groups), kThreads, 0, s.handle>>>(g);
}
KERNEL(s4d_kernel_backward)

}  // namespace ss::cuda
