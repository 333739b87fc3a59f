// What training needs of routers: the gradients of route_experts and of router_statistics' two losses, in
// f64, rows being independent of each other; and totals.
#include <math.h>

#include "simd.h"

namespace ss::SS_LEVEL {

// With g the gradient of the probabilities p, by themselves and as weights: p (g - sum of g p) for a
// softmax, g p (1 - p) for a sigmoid. A weight that was divided by the sum S of the chosen passes on
// (dw - sum of dw w) / S.
void route_experts_backward(Stream& s, In experts, In probs, Opt dweights, Opt dprobs, bool sigmoid,
                            bool normalize, Out dlogits) {
  const int64_t e = probs.size(1), k = experts.size(1);
  s.parallel(probs.size(0), 16, [&](int64_t begin, int64_t end, int worker) {
    double* g = static_cast<double*>(s.scratch(worker, static_cast<size_t>(e) * sizeof(double)));
    for (int64_t i = begin; i < end; i++) {
      const float* p = probs.row<float>(i);
      const int32_t* chosen = experts.row<int32_t>(i);
      for (int64_t j = 0; j < e; j++) g[j] = dprobs ? dprobs.row<float>(i)[j] : 0;
      const float* given = dweights ? dweights.row<float>(i) : nullptr;
      const auto known = [&](int64_t j) { return given && chosen[j] >= 0 && chosen[j] < e; };
      double total = 1, along = 0;
      if (normalize) {
        total = 0;
        for (int64_t j = 0; j < k; j++)
          if (known(j)) total += p[chosen[j]], along += static_cast<double>(given[j]) * p[chosen[j]];
        along /= total;
      }
      for (int64_t j = 0; j < k; j++)
        if (known(j)) g[chosen[j]] += (given[j] - along) / total;
      double level = 0;
      for (int64_t j = 0; j < e; j++) level += g[j] * p[j];
      for (int64_t j = 0; j < e; j++)
        dlogits.row<float>(i)[j] = static_cast<float>(
            sigmoid ? g[j] * p[j] * (1 - static_cast<double>(p[j])) : p[j] * (g[j] - level));
    }
  });
}
KERNEL(route_experts_backward)

void router_statistics_backward(Stream& s, In logits, In experts, Opt dbalance, Opt dz, Out dlogits) {
  const int64_t t = logits.size(0), e = logits.size(1), k = experts.size(1);
  double* share = static_cast<double*>(s.scratch(0, static_cast<size_t>(e + 1) * sizeof(double)));
  double all = 0;
  for (int64_t j = 0; j < e; j++) share[j] = 0;
  for (int64_t i = 0; i < t; i++)
    for (int64_t j = 0; j < k; j++)
      if (const int32_t to = experts.row<int32_t>(i)[j]; to >= 0 && to < e) share[to]++, all++;
  for (int64_t j = 0; j < e && all > 0; j++) share[j] /= all;
  const double tokens = static_cast<double>(t);
  const double of_balance = dbalance ? *dbalance.data<float>() * static_cast<double>(e) / tokens : 0;
  const double of_z = dz ? *dz.data<float>() * 2.0 / tokens : 0;
  for (int64_t i = 0; i < t; i++) {
    const float* x = logits.row<float>(i);
    float* to = dlogits.row<float>(i);
    double most = -INFINITY, total = 0, level = 0;
    for (int64_t j = 0; j < e; j++) most = x[j] > most ? x[j] : most;
    for (int64_t j = 0; j < e; j++) total += ::exp(x[j] - most);
    for (int64_t j = 0; j < e; j++) level += share[j] * ::exp(x[j] - most) / total;
    const double whole = most + ::log(total);
    for (int64_t j = 0; j < e; j++)
      to[j] = static_cast<float>(::exp(x[j] - most) / total *
                                 (of_balance * (share[j] - level) + of_z * whole));
  }
}
KERNEL(router_statistics_backward)

void add_router_totals(Stream&, In balance, In z, In entropy, In dropped, InOut totals, int64_t experts) {
  const double most = ::log(static_cast<double>(experts));
  const float entropy_share = experts > 1 ? static_cast<float>(*entropy.data<float>() / most) : 1.0f;
  float* to = totals.data<float>();
  to[0] += *balance.data<float>(), to[1] += *z.data<float>(), to[2] += entropy_share;
  to[3] += static_cast<float>(*dropped.data<int32_t>()), to[4] += 1;
}
KERNEL(add_router_totals)

}  // namespace ss::SS_LEVEL
