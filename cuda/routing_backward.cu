// What training needs of routers: totals, and the gradients of route_experts and of router_statistics' two losses (formulas in
// native/cpu/routing_backward.cc). A warp takes a token, its lanes the experts; the shares of the
// choices are counted before, by one block.
#include <math.h>

#include "device/reduce.cuh"
#include "scratch.h"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kWarps = 4;

struct Choice {
  const int32_t* experts;  // [t, k]
  const float *probs, *dweights, *dprobs;
  int64_t experts_stride, probs_stride, dweights_stride, dprobs_stride, t, e, k;
  bool sigmoid, normalize;
  float* dlogits;  // [t, e]
};

__global__ void __launch_bounds__(32 * kWarps) choose_back(const Choice c) {
  const int lane = threadIdx.x % 32;
  const int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (i >= c.t) return;
  const float* p = c.probs + i * c.probs_stride;
  const int32_t* chosen = c.experts + i * c.experts_stride;
  const float* given = c.dweights ? c.dweights + i * c.dweights_stride : nullptr;
  const auto known = [&](int64_t j) { return given && chosen[j] >= 0 && chosen[j] < c.e; };
  double total = 1, along = 0;
  if (c.normalize && given) {
    total = 0;
    for (int64_t j = lane; j < c.k; j += 32)
      if (known(j)) total += p[chosen[j]], along += static_cast<double>(given[j]) * p[chosen[j]];
    total = warp_sum(total);
    along = warp_sum(along) / total;
  }
  const auto gradient = [&](int64_t j) {  // of a probability
    double g = c.dprobs ? c.dprobs[i * c.dprobs_stride + j] : 0;
    for (int64_t a = 0; a < c.k; a++)
      if (given && chosen[a] == j) g += (given[a] - along) / total;
    return g;
  };
  double level = 0;
  for (int64_t j = lane; j < c.e && !c.sigmoid; j += 32) level += gradient(j) * p[j];
  level = warp_sum(level);
  for (int64_t j = lane; j < c.e; j += 32) {
    const double g = gradient(j), x = p[j];
    c.dlogits[i * c.e + j] = static_cast<float>(c.sigmoid ? g * x * (1 - x) : x * (g - level));
  }
}

// counts: of the choices of each expert, then of all. In whole numbers, so in any order.
__global__ void __launch_bounds__(1024)
    count_choices(const int32_t* experts, int64_t stride, int64_t t, int64_t k, int64_t e, int* counts) {
  for (int64_t j = threadIdx.x; j <= e; j += blockDim.x) counts[j] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < t * k; i += blockDim.x) {
    const int32_t to = experts[i / k * stride + i % k];
    if (to >= 0 && to < e) atomicAdd(&counts[to], 1), atomicAdd(&counts[e], 1);
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    statistics_back(const float* logits, int64_t stride, int64_t t, int64_t e, const int* counts,
                    const float* dbalance, const float* dz, float* dlogits) {
  const int lane = threadIdx.x % 32;
  const int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (i >= t) return;
  const float* x = logits + i * stride;
  const float all = counts[e] > 0 ? static_cast<float>(counts[e]) : 1.0f;
  const auto share = [&](int64_t j) { return static_cast<float>(counts[j]) / all; };
  float most = -INFINITY, total = 0, level = 0;
  for (int64_t j = lane; j < e; j += 32) most = fmaxf(most, x[j]);
  most = warp_max(most);
  for (int64_t j = lane; j < e; j += 32) {
    const float p = expf(x[j] - most);
    total += p;
    level = fmaf(share(j), p, level);
  }
  total = warp_sum(total);
  level = warp_sum(level) / total;
  const float tokens = static_cast<float>(t);
  const float of_balance = dbalance ? *dbalance * static_cast<float>(e) / tokens : 0.0f;
  const float of_z = dz ? *dz * 2.0f / tokens * (most + logf(total)) : 0.0f;
  for (int64_t j = lane; j < e; j += 32)
    dlogits[i * e + j] = expf(x[j] - most) / total * fmaf(of_balance, share(j) - level, of_z);
}

__global__ void add_totals(const float* balance, const float* z, const float* entropy,
                           const int32_t* dropped, float most, float* totals) {
  totals[0] += *balance, totals[1] += *z, totals[2] += most > 0 ? *entropy / most : 1.0f;
  totals[3] += static_cast<float>(*dropped), totals[4] += 1;
}

unsigned blocks_of(int64_t t) { return static_cast<unsigned>((t + kWarps - 1) / kWarps); }

}  // namespace

void route_experts_backward(Stream& s, In experts, In probs, Opt dweights, Opt dprobs, bool sigmoid,
                            bool normalize, Out dlogits) {
  Choice c{};
  c.experts = experts.data<int32_t>(), c.experts_stride = experts.stride();
  c.probs = probs.data<float>(), c.probs_stride = probs.stride();
  if (dweights) c.dweights = dweights.data<float>(), c.dweights_stride = dweights.stride();
  if (dprobs) c.dprobs = dprobs.data<float>(), c.dprobs_stride = dprobs.stride();
  c.t = probs.size(0), c.e = probs.size(1), c.k = experts.size(1);
  c.sigmoid = sigmoid, c.normalize = normalize, c.dlogits = dlogits.data<float>();
  if (c.t > 0) choose_back<<<blocks_of(c.t), 32 * kWarps, 0, s.handle>>>(c);
}
KERNEL(route_experts_backward)

void router_statistics_backward(Stream& s, In logits, In experts, Opt dbalance, Opt dz, Out dlogits) {
  const int64_t t = logits.size(0), e = logits.size(1), k = experts.size(1);
  if (t * e == 0) return;
  const Scratch scratch(s, (e + 1) * static_cast<int64_t>(sizeof(int)));
  if (!scratch.floats()) return;  // the queue reports it
  int* counts = reinterpret_cast<int*>(scratch.floats());
  count_choices<<<1, 1024, 0, s.handle>>>(experts.data<int32_t>(), experts.stride(), t, k, e, counts);
  statistics_back<<<blocks_of(t), 32 * kWarps, 0, s.handle>>>(
      logits.data<float>(), logits.stride(), t, e, counts, dbalance ? dbalance.data<float>() : nullptr,
      dz ? dz.data<float>() : nullptr, dlogits.data<float>());
}
KERNEL(router_statistics_backward)

void add_router_totals(Stream& s, In balance, In z, In entropy, In dropped, InOut totals,
                       int64_t experts) {
  add_totals<<<1, 1, 0, s.handle>>>(balance.data<float>(), z.data<float>(), entropy.data<float>(),
                                    dropped.data<int32_t>(),
                                    experts > 1 ? logf(static_cast<float>(experts)) : 0.0f,
                                    totals.data<float>());
}
KERNEL(add_router_totals)

}  // namespace ss::cuda
