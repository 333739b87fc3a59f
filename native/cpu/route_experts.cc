// Which experts a token goes to, in f32; sums in f64. Rows are independent of each other.
#include <math.h>

#include "philox.h"

namespace ss::SS_LEVEL {
namespace {

// probs = softmax(x) or sigmoid(x).
void weigh(const float* x, int64_t n, bool sigmoid, float* probs) {
  if (sigmoid) {
    for (int64_t j = 0; j < n; j++)
      probs[j] = static_cast<float>(1 / (1 + ::exp(-static_cast<double>(x[j]))));
    return;
  }
  double most = -INFINITY, total = 0;
  for (int64_t j = 0; j < n; j++) most = x[j] > most || x[j] != x[j] ? x[j] : most;
  for (int64_t j = 0; j < n; j++) total += ::exp(x[j] - most);
  for (int64_t j = 0; j < n; j++) probs[j] = static_cast<float>(::exp(x[j] - most) / total);
}

// NaN is less than anything: whatever comes in, every token gets k different experts.
SS_INLINE bool better(float a, float b) { return a > b || (b != b && a == a); }

}  // namespace

void route_experts(Stream& s, In logits, Opt scores, int64_t k, bool sigmoid, bool normalize,
                   Out experts, Out weights, Out probs) {  // [t, e] -> [t, k], [t, k], [t, e]
  const int64_t n = logits.size(1);
  s.parallel(logits.size(0), 16, [&](int64_t begin, int64_t end, int worker) {
    bool* taken = static_cast<bool*>(s.scratch(worker, static_cast<size_t>(n)));
    for (int64_t i = begin; i < end; i++) {
      float* p = probs.row<float>(i);
      weigh(logits.row<float>(i), n, sigmoid, p);
      const float* score = scores ? scores.row<float>(i) : logits.row<float>(i);
      memset(taken, 0, static_cast<size_t>(n));
      double total = 0;
      for (int64_t j = 0; j < k; j++) {
        int64_t best = -1;
        for (int64_t at = 0; at < n; at++)
          if (!taken[at] && (best < 0 || better(score[at], score[best]))) best = at;
        taken[best] = true;
        experts.row<int32_t>(i)[j] = static_cast<int32_t>(best);
        total += weights.row<float>(i)[j] = p[best];
      }
      for (int64_t j = 0; normalize && j < k; j++)
        weights.row<float>(i)[j] = static_cast<float>(weights.row<float>(i)[j] / total);
    }
  });
}
KERNEL(route_experts)

// One thread: a router's matrix is small, and every sum has one order.
void sinkhorn(Stream& s, In logits, bool classical, float tolerance, float epsilon, int64_t most,
              Out balanced, Out iterations) {  // [t, e] -> [t, e], [1]
  const int64_t t = logits.size(0), e = logits.size(1);
  double* cost = static_cast<double*>(
      s.scratch(0, static_cast<size_t>(t * e + t + 2 * e) * sizeof(double)));  // [t, e]
  double *d0 = cost + t * e, *d1 = d0 + t, *column = d1 + e;
  const auto sum_columns = [&](auto&& factor) {
    for (int64_t j = 0; j < e; j++) column[j] = 0;
    for (int64_t i = 0; i < t; i++)
      for (int64_t j = 0; j < e; j++) column[j] += factor(i) * cost[i * e + j];
  };
  for (int64_t i = 0; i < t; i++)
    for (int64_t j = 0; j < e; j++)
      cost[i * e + j] = ::exp(2.0 * static_cast<double>(logits.row<float>(i)[j]));
  sum_columns([](int64_t) { return 1.0; });
  for (int64_t j = 0; j < e; j++) d1[j] = classical ? 1 : 1 / (static_cast<double>(e) * column[j]);

  int32_t turns = 0;
  for (double change = INFINITY; t > 0 && e > 0 && change > tolerance && turns < most; turns++) {
    for (int64_t i = 0; i < t; i++) {
      double sum = 0;
      for (int64_t j = 0; j < e; j++) sum += d1[j] * cost[i * e + j];
      d0[i] = 1 / (static_cast<double>(t) * (sum + epsilon));
    }
    sum_columns([&](int64_t i) { return d0[i]; });
    change = 0;
    for (int64_t j = 0; j < e; j++) {
      const double next = 1 / (static_cast<double>(e) * (column[j] + epsilon));
      change += fabs(next - d1[j]) / static_cast<double>(e);
      d1[j] = next;
    }
  }
  for (int64_t i = 0; i < t; i++)
    for (int64_t j = 0; j < e; j++)
      balanced.row<float>(i)[j] = static_cast<float>(d1[j] * cost[i * e + j] * (turns ? d0[i] : 1));
  *iterations.data<int32_t>() = turns;
}
KERNEL(sinkhorn)

void jitter(Stream& s, In x, In seed, float epsilon, Out y) {  // [t, d], [2] -> [t, d]
  const int64_t d = x.size(1);
  const int32_t* key = seed.data<int32_t>();
  with_float(x.dtype(), [&](auto xt) {
    using X = decltype(xt);
    s.parallel(x.size(0), 1024 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < d; j++) {
          const double u = uniform(static_cast<uint32_t>(key[0]), static_cast<uint32_t>(key[1]),
                                   static_cast<uint32_t>(i * d + j));
          y.row<float>(i)[j] =
              to_float(x.row<X>(i)[j]) * static_cast<float>(1 + epsilon * (2 * u - 1));
        }
    });
  });
}
KERNEL(jitter)

}  // namespace ss::SS_LEVEL
