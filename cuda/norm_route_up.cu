// One token into its experts: norm_route, then hidden = f(gate) up of the chosen ones' first matrix,
// as a stream of weights: k n d sizeof(W) bytes. Every block makes the routing itself (50 KiB from
// the cache), so that no kernel waits for another in between; a block takes 8 hidden columns at a
// time, its 16 warps both halves of the matrix and 64 columns of d in turn. Measured and left: asking
// the second matrix into the L2 meanwhile (at best no slower), and the router before the wait.
#include "card.h"
#include "device/gate.cuh"
#include "device/mma.cuh"
#include "device/norm_route.cuh"
#include "dispatch.cuh"
#include "matmul_few.cuh"
#include "stream.h"

namespace ss::cuda {

void norm_route(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                int64_t k, bool sigmoid, bool normalize, Out sum, Out normed, Out logits,
                Out experts, Out weights);

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kColumns = 8;  // hidden ones that a block takes together
constexpr int kSlice = 64;   // columns of d that a warp takes together
constexpr int kMostWidth = 4 * kThreads, kMostChosen = 8;
constexpr int kMostSums = 32 << 10;  // bytes

template <class T>
struct Entry {
  Router<T> router;
  const T* up;         // [e, n, d]
  const float* bias;   // [e, n] or null
  T* hidden;           // [k, h]
  int64_t up_stride, bias_stride;
  int h, kind, groups;  // groups: of kColumns, of one expert
  bool gated;
};

// What a lane has of 8 rows: S slices.
template <int S>
struct Slices {
  uint4 w[S][2];
};

template <int S, class T>
__global__ void __launch_bounds__(kThreads, 1) enter_experts(const Entry<T> g) {
  __shared__ __align__(16) T row[kMostWidth];
  __shared__ float of_warp[kWarps][kMostExperts], own[kWarps][kMostExperts];
  __shared__ int32_t chosen[kMostChosen];
  extern __shared__ float sums[];  // [k * turns][kWarps][kColumns]
  const Router<T>& r = g.router;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4;
  const int parts = g.gated ? kWarps / 2 : kWarps, half = warp / parts;
  const int step = static_cast<int>(gridDim.x), start = static_cast<int>(blockIdx.x);
  const int turns = (g.groups - start + step - 1) / step;
  const bool first = start == 0;
  let_next_start();
  wait_for_previous();

  NormedRow<kThreads, 1, T> normed{r, 0, first};
  float* logits = own[warp];
  normed.run(logits, of_warp, [&](int column, Raw<T, 4> raw) {
    *reinterpret_cast<Raw<T, 4>*>(row + column) = raw;
  });
  const Weigh weigh(logits, r.e, r.sigmoid);

  const auto slice_at = [&](int s, int i) {
    return (warp % parts + s * parts) * kSlice + 32 * i + 8 * q;
  };
  const auto load = [&](const T* w, int group) {
    Slices<S> piece;
    const int column = group * kColumns + lane / 4;
    const T* from = w + (int64_t{half} * g.h + (column < g.h ? column : g.h - 1)) * r.d;
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        piece.w[s][i] = load_sixteen<true>(from + slice_at(s, i),
                                           slice_at(s, i) < r.d && group < g.groups);
    return piece;
  };
  each_best(logits, r.e, r.k, weigh, [&](int64_t c, int32_t expert, float) {
    if (threadIdx.x == 0) chosen[c] = expert;
    const T* w = g.up + expert * g.up_stride;
    Slices<S> now = load(w, start);
    for (int turn = 0; turn < turns; turn++) {
      const Slices<S> next = load(w, start + (turn + 1) * step);
      float sum[4] = {};
#pragma unroll
      for (int s = 0; s < S; s++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int at = slice_at(s, i);
          const uint4 x = at < r.d ? *reinterpret_cast<const uint4*>(row + at) : uint4{};
          mma(sum, x.x, 0, x.y, 0, now.w[s][i].x, now.w[s][i].y, T{});
          mma(sum, x.z, 0, x.w, 0, now.w[s][i].z, now.w[s][i].w, T{});
        }
      float* to = sums + ((c * turns + turn) * kWarps + warp) * kColumns;
      if (lane < 4) to[2 * q] = sum[0], to[2 * q + 1] = sum[1];  // as in each other row
      now = next;
    }
  });
  if (first && warp == 0) {
    for (int j = lane; j < r.e; j += 32) r.logits[j] = logits[j];
    choose_experts(logits, r.e, r.k, weigh, r.normalize, r.experts, r.weights);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < r.k * turns * kColumns; i += kThreads) {
    const int c = i / (turns * kColumns), turn = i / kColumns % turns, at = i % kColumns;
    const int column = (start + turn * step) * kColumns + at;
    if (column >= g.h) continue;
    const float* of = sums + (c * turns + turn) * kWarps * kColumns + at;
    float sum[2] = {};
#pragma unroll
    for (int w = 0; w < kWarps; w++) (w < parts ? sum[0] : sum[1]) += of[w * kColumns];
    if (g.bias) {
      const float* bias = g.bias + chosen[c] * g.bias_stride + column;
      sum[0] += bias[0];
      if (g.gated) sum[1] += bias[g.h];
    }
    from_float(g.hidden[int64_t{c} * g.h + column],
               activated_briefly(sum[0], g.kind) * (g.gated ? sum[1] : 1.0f));
  }
}

// Any types and sizes: a warp has one hidden column of one of the experts.
template <int V, class X, class W>
__global__ void __launch_bounds__(256)
    up_columns(const X* x, const W* w, int64_t w_stride, const float* bias, int64_t bias_stride,
               const int32_t* experts, int64_t d, int64_t h, bool gated, int kind, X* hidden) {
  const int64_t column = blockIdx.x * int64_t{8} + threadIdx.x / 32, c = blockIdx.y;
  if (column >= h) return;
  const int64_t expert = experts[c];
  float sum[2] = {0, 1};
  for (int half = 0; half < (gated ? 2 : 1); half++) {
    const W* from = w + expert * w_stride + (half * h + column) * d;
    float own = 0;
    for (int64_t j = threadIdx.x % 32 * V; j < d; j += 32 * V) {
      const Pack<V> a = Pack<V>::load(x + j), b = Pack<V>::load(from + j);
#pragma unroll
      for (int i = 0; i < V; i++) own = fmaf(a.item[i], b.item[i], own);
    }
    sum[half] = warp_sum(own);
    if (bias) sum[half] += bias[expert * bias_stride + half * h + column];
  }
  if (threadIdx.x % 32 == 0) from_float(hidden[c * h + column], activated(sum[0], kind) * sum[1]);
}

template <class T>
bool together(Stream& s, Entry<T> g, bool aligned) {
  const Router<T>& r = g.router;
  const int blocks = static_cast<int>(least(g.groups, multiprocessors()));
  const int64_t turns = (g.groups + blocks - 1) / blocks;
  const int64_t bytes = r.k * turns * kWarps * kColumns * static_cast<int64_t>(sizeof(float));
  const int slices = (r.d + kSlice - 1) / kSlice, parts = g.gated ? kWarps / 2 : kWarps;
  if (!aligned || r.d % 8 != 0 || r.d > kMostWidth || r.k > kMostChosen || bytes > kMostSums)
    return false;
  const Grid grid{static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(bytes)};
  const int each = (slices + parts - 1) / parts;
  if (each <= 2)
    launch(s.handle, enter_experts<2, T>, grid, g);
  else if (each == 3)
    launch(s.handle, enter_experts<3, T>, grid, g);
  else
    launch(s.handle, enter_experts<4, T>, grid, g);
  return true;
}

}  // namespace

// [1, d]?, [1, d], [d], [e, d], [e]?, [e, n, d], [e, n]?
// -> [1, d], [1, d], [1, e], [1, k], [1, k], [k, h]
void norm_route_up(Stream& s, Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                   Opt up_bias, float eps, int64_t k, bool sigmoid, bool normalize,
                   int64_t kind, int64_t h, Out sum, Out normed, Out logits, Out experts,
                   Out weights, Out hidden) {
  const int64_t d = residual.size(1), e = router.size(0), n = up.size(1);
  bool done = false;
  const auto try_together = [&](auto type) {
    using T = decltype(type);
    if (up.dtype() != normed.dtype() || e > kMostExperts || d == 0 || h == 0) return;
    const bool aligned = (!x || packs<T>(x, 4)) && packs<float>(residual, 4) &&
                         packs<float>(norm_weight, 4) && packs<float>(router, 4) &&
                         packs<T>(up, 8);
    Entry<T> g{};
    Router<T>& r = g.router;
    if (x) r.x = x.template data<T>(), r.x_stride = x.stride();
    r.residual = residual.data<float>(), r.residual_stride = residual.stride();
    r.norm_weight = norm_weight.data<float>();
    r.weight = router.data<float>(), r.weight_stride = router.stride();
    if (router_bias) r.bias = router_bias.data<float>();
    r.sum = sum.data<float>(), r.normed = normed.data<T>(), r.logits = logits.data<float>();
    r.experts = experts.data<int32_t>(), r.weights = weights.data<float>();
    r.d = static_cast<int>(d), r.e = static_cast<int>(e), r.k = static_cast<int>(k);
    r.eps = eps, r.sigmoid = sigmoid, r.normalize = normalize;
    g.up = up.data<T>(), g.up_stride = up.stride();
    if (up_bias) g.bias = up_bias.data<float>(), g.bias_stride = up_bias.stride();
    g.hidden = hidden.data<T>(), g.h = static_cast<int>(h), g.kind = static_cast<int>(kind);
    g.groups = static_cast<int>((h + kColumns - 1) / kColumns), g.gated = n == 2 * h;
    done = together(s, g, aligned);
  };
  if (normed.dtype() == DType::bf16) try_together(__nv_bfloat16{});
  if (normed.dtype() == DType::f16) try_together(__half{});
  if (done) return;
  norm_route(s, x, residual, norm_weight, router, router_bias, eps, k, sigmoid, normalize, sum,
             normed, logits, experts, weights);
  if (h == 0) return;
  with_float(normed.dtype(), [&](auto xt) {
    with_float(up.dtype(), [&](auto wt) {
      using X = decltype(xt);
      using W = decltype(wt);
      constexpr int V = 16 / (sizeof(X) > sizeof(W) ? sizeof(X) : sizeof(W));
      const dim3 grid(static_cast<unsigned>((h + 7) / 8), static_cast<unsigned>(k));
      const bool wide = d % V == 0 && packs<W>(up, V);
      (wide ? up_columns<V, X, W> : up_columns<1, X, W>)<<<grid, 256, 0, s.handle>>>(
          normed.data<X>(), up.data<W>(), up.stride(), up_bias ? up_bias.data<float>() : nullptr,
          up_bias ? up_bias.stride() : 0, experts.data<int32_t>(), d, h, n == 2 * h,
          static_cast<int>(kind), hidden.data<X>());
    });
  });
}
KERNEL(norm_route_up)

}  // namespace ss::cuda
