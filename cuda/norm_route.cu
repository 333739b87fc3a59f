// sum = residual + x, normed = rms_norm(sum), logits = normed router^T + bias, and the k best
// experts: the start of a layer of experts. The router's rows come from the cache; 12 d bytes a
// token move. Few tokens: one block each; many: one warp each.
#include "device/norm_route.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {

void rms_norm(Stream& s, In x, In weight, float eps, Out y);
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total);
void cast(Stream& s, In x, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kFewTokens = 528;  // four blocks for each multiprocessor

template <int Parts, class T>
__global__ void __launch_bounds__(kThreads) route_by_block(const Router<T> g) {
  __shared__ float of_warp[kWarps][kMostExperts], logits[kMostExperts];
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  // Only the first warp's logits are used: the others' lie elsewhere.
  __shared__ float unused[kWarps][kMostExperts];
  const int warp = threadIdx.x / 32;
  NormedRow<kThreads, Parts, T> normed{g, row, true};
  normed.run(warp ? unused[warp] : logits, of_warp, [](int, Raw<T, 4>) {});
  if (warp > 0) return;
  for (int j = threadIdx.x; j < g.e; j += 32) g.logits[row * g.e + j] = logits[j];
  choose_experts(logits, g.e, g.k, Weigh(logits, g.e, g.sigmoid), g.normalize,
                 g.experts + row * g.k, g.weights + row * g.k);
}

template <int Parts, class T>
__global__ void __launch_bounds__(kThreads) route_by_warp(const Router<T> g, int64_t t) {
  __shared__ float logits[kWarps][kMostExperts];
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp;
  if (row >= t) return;
  float* own = logits[warp];
  NormedRow<32, Parts, T> normed{g, row, true};
  normed.run(own, nullptr, [](int, Raw<T, 4>) {});
  for (int j = lane; j < g.e; j += 32) g.logits[row * g.e + j] = own[j];
  choose_experts(own, g.e, g.k, Weigh(own, g.e, g.sigmoid), g.normalize, g.experts + row * g.k,
                 g.weights + row * g.k);
}

__global__ void choose(const float* logits, int64_t t, int64_t e, int64_t k, bool sigmoid,
                       bool normalize, int32_t* experts, float* weights) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (row >= t) return;
  const float* own = logits + row * e;
  choose_experts(own, e, k, Weigh(own, e, sigmoid), normalize, experts + row * k,
                 weights + row * k);
}

template <class T>
void launch_route(Stream& s, const Router<T>& g, int64_t t) {
  const unsigned blocks = static_cast<unsigned>((t + kWarps - 1) / kWarps);
  if (t <= kFewTokens)
    return g.d <= 4 * kThreads
               ? launch(s.handle, route_by_block<1, T>, {static_cast<unsigned>(t), kThreads}, g)
               : launch(s.handle, route_by_block<2, T>, {static_cast<unsigned>(t), kThreads}, g);
  if (g.d <= 1024) return launch(s.handle, route_by_warp<8, T>, {blocks, kThreads}, g, t);
  if (g.d <= 1536) return launch(s.handle, route_by_warp<12, T>, {blocks, kThreads}, g, t);
  launch(s.handle, route_by_warp<16, T>, {blocks, kThreads}, g, t);
}

}  // namespace

// [t, d]?, [t, d], [d], [e, d], [e]? -> [t, d], [t, d], [t, e], [t, k], [t, k]
void norm_route(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                int64_t k, bool sigmoid, bool normalize, Out sum, Out normed, Out logits,
                Out experts, Out weights) {
  const int64_t t = residual.size(0), d = residual.size(1), e = weight.size(0);
  if (t == 0) return;
  bool done = false;
  with_float(normed.dtype(), [&](auto type) {
    using T = decltype(type);
    const bool fits = d > 0 && d % 4 == 0 && d <= 2048 && e <= kMostExperts && t < INT32_MAX &&
                      (!x || packs<T>(x, 4)) && packs<float>(residual, 4) &&
                      packs<float>(norm_weight, 4) && packs<float>(weight, 4);
    if (!fits) return;
    Router<T> g{};
    if (x) g.x = x.data<T>(), g.x_stride = x.stride();
    g.residual = residual.data<float>(), g.residual_stride = residual.stride();
    g.norm_weight = norm_weight.data<float>();
    g.weight = weight.data<float>(), g.weight_stride = weight.stride();
    if (bias) g.bias = bias.data<float>();
    g.sum = sum.data<float>(), g.normed = normed.data<T>(), g.logits = logits.data<float>();
    g.experts = experts.data<int32_t>(), g.weights = weights.data<float>();
    g.d = static_cast<int>(d), g.e = static_cast<int>(e), g.k = static_cast<int>(k);
    g.eps = eps, g.sigmoid = sigmoid, g.normalize = normalize;
    launch_route(s, g, t);
    done = true;
  });
  if (done) return;
  if (x) {
    add_rms_norm(s, In{x.view}, residual, norm_weight, eps, normed, sum);
  } else {
    cast(s, residual, sum);
    rms_norm(s, residual, norm_weight, eps, normed);
  }
  matmul(s, In{normed.view}, weight, bias, logits);
  choose<<<static_cast<unsigned>((t + kWarps - 1) / kWarps), kThreads, 0, s.handle>>>(
      logits.data<float>(), t, e, k, sigmoid, normalize, experts.data<int32_t>(),
      weights.data<float>());
}
KERNEL(norm_route)

}  // namespace ss::cuda
