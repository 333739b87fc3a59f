// y = sum over a token's experts of weight (hidden W^T + bias): out of the experts that
// norm_route_up went into, as a stream of weights, k n h sizeof(W) bytes a token. A block has 8 rows
// of W, its 16 warps 64 columns of h in turn, all asked for at once; the expert is read on the device.
#include "device/mma.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "matmul_few.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kRows = 8;    // of W that a block takes
constexpr int kSlice = 64;  // columns of h that a warp takes together

struct Exit {
  const void *hidden, *w;  // [t k, h], [e, n, h]
  const float* bias;       // [e, n] or null
  const int32_t* experts;  // [t, k]
  const float* weights;    // [t, k]
  void* y;                 // [t, n]
  int64_t hidden_stride, w_stride, bias_stride, n, h, e, k, experts_stride, weights_stride;
  Fault* fault;

  // Of a token; what is out of range is reported, and expert 0 read instead.
  __device__ int64_t expert(int64_t token, int64_t c) const {
    const int32_t at = experts[token * experts_stride + c];
    if (at >= 0 && at < e) return at;
    fault->report(token * k + c, at, e);
    return 0;
  }
};

// S slices of a warp at once.
template <int S, class T>
__global__ void __launch_bounds__(kThreads, 2) leave_experts(const Exit g) {
  __shared__ float sums[kWarps][kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4;
  const int64_t token = blockIdx.y, first = blockIdx.x * int64_t{kRows};
  const int64_t row = least(first + lane / 4, g.n - 1);
  let_next_start();
  wait_for_previous();
  float total[2] = {};
  for (int64_t c = 0; c < g.k; c++) {
    const T* w = static_cast<const T*>(g.w) + g.expert(token, c) * g.w_stride + row * g.h;
    const T* x = static_cast<const T*>(g.hidden) + (token * g.k + c) * g.hidden_stride;
    const float weight = g.weights[token * g.weights_stride + c];
    float sum[4] = {};
    for (int64_t begin = warp * kSlice; begin < g.h; begin += S * kWarps * kSlice) {
      uint4 a[S][2], b[S][2];
      const auto at = [&](int s, int i) { return begin + s * kWarps * kSlice + 32 * i + 8 * q; };
#pragma unroll
      for (int s = 0; s < S; s++)
#pragma unroll
        for (int i = 0; i < 2; i++) b[s][i] = load_sixteen<true>(w + at(s, i), at(s, i) < g.h);
#pragma unroll
      for (int s = 0; s < S; s++)
#pragma unroll
        for (int i = 0; i < 2; i++) a[s][i] = load_sixteen<false>(x + at(s, i), at(s, i) < g.h);
#pragma unroll
      for (int s = 0; s < S; s++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          mma(sum, a[s][i].x, 0, a[s][i].y, 0, b[s][i].x, b[s][i].y, T{});
          mma(sum, a[s][i].z, 0, a[s][i].w, 0, b[s][i].z, b[s][i].w, T{});
        }
    }
    total[0] += weight * sum[0], total[1] += weight * sum[1];
  }
  if (lane < 4) sums[warp][2 * q] = total[0], sums[warp][2 * q + 1] = total[1];
  __syncthreads();
  if (threadIdx.x >= kRows || first + threadIdx.x >= g.n) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i++) sum += sums[i][threadIdx.x];
  const int64_t column = first + threadIdx.x;
  for (int64_t c = 0; g.bias && c < g.k; c++)
    sum += g.weights[token * g.weights_stride + c] *
           g.bias[g.expert(token, c) * g.bias_stride + column];
  from_float(static_cast<T*>(g.y)[token * g.n + column], sum);
}

// Any types and sizes: a warp has one column of y.
template <int V, class X, class W>
__global__ void __launch_bounds__(256) sum_columns(const Exit g) {
  const int64_t column = blockIdx.x * int64_t{8} + threadIdx.x / 32, token = blockIdx.y;
  if (column >= g.n) return;
  float total = 0;
  for (int64_t c = 0; c < g.k; c++) {
    const int64_t expert = g.expert(token, c);
    const X* x = static_cast<const X*>(g.hidden) + (token * g.k + c) * g.hidden_stride;
    const W* w = static_cast<const W*>(g.w) + expert * g.w_stride + column * g.h;
    float sum = 0;
    for (int64_t j = threadIdx.x % 32 * V; j < g.h; j += 32 * V) {
      const Pack<V> a = Pack<V>::load(x + j), b = Pack<V>::load(w + j);
#pragma unroll
      for (int i = 0; i < V; i++) sum = fmaf(a.item[i], b.item[i], sum);
    }
    sum = warp_sum(sum);
    if (g.bias) sum += g.bias[expert * g.bias_stride + column];
    total = fmaf(g.weights[token * g.weights_stride + c], sum, total);
  }
  if (threadIdx.x % 32 == 0) from_float(static_cast<X*>(g.y)[token * g.n + column], total);
}

}  // namespace

// [t k, h], [e, n, h], [e, n]?, [t, k], [t, k] -> [t, n]
void expert_sum(Stream& s, In hidden, In weight, Opt bias, In experts, In weights, Out y) {
  const Exit g{hidden.view->data,
               weight.view->data,
               bias ? bias.data<float>() : nullptr,
               experts.data<int32_t>(),
               weights.data<float>(),
               y.view->data,
               hidden.stride(),
               weight.stride(),
               bias ? bias.stride() : 0,
               weight.size(1),
               weight.size(2),
               weight.size(0),
               experts.size(1),
               experts.stride(),
               weights.stride(),
               s.fault("experts[%lld] is %d, expected 0 to less than %lld")};
  const int64_t t = experts.size(0);
  if (t == 0 || g.n == 0) return;
  const dim3 grid(static_cast<unsigned>((g.n + 7) / 8), static_cast<unsigned>(t));
  with_float(hidden.dtype(), [&](auto xt) {
    with_float(weight.dtype(), [&](auto wt) {
      using X = decltype(xt);
      using W = decltype(wt);
      if constexpr (sizeof(X) == 2 && std::is_same_v<X, W>) {
        if (g.h % 8 == 0 && packs<X>(hidden, 8) && packs<X>(weight, 8)) {
          const bool narrow = g.h <= 2 * kWarps * kSlice;
          return launch(s.handle, narrow ? leave_experts<2, X> : leave_experts<4, X>,
                        {grid, kThreads}, g);
        }
      }
      constexpr int V = 16 / (sizeof(X) > sizeof(W) ? sizeof(X) : sizeof(W));
      const bool wide = g.h % V == 0 && packs<X>(hidden, V) && packs<W>(weight, V);
      (wide ? sum_columns<V, X, W> : sum_columns<1, X, W>)<<<grid, 256, 0, s.handle>>>(g);
    });
  });
}
KERNEL(expert_sum)

}  // namespace ss::cuda
