// From each token's experts to each expert's tokens: who fits, in what order, and what came of it.
#include <math.h>

#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

// Numbers in the order of their keys; NaN before all, -0 and 0 alike.
SS_INLINE uint32_t key_of(float x) {
  if (x != x) return 0;
  const uint32_t u = bits<uint32_t>(x + 0.0f);
  return u >> 31 ? ~u : u | 0x80000000u;
}

struct Choice {
  int64_t at;  // token * k + column
  uint32_t key;
};

// The key of the capacity-th best of n > capacity > 0 choices, eight bits at a time. `room` is how
// many with exactly this key fit.
uint32_t last_key(const Choice* choices, int64_t n, int64_t capacity, int64_t* room) {
  uint32_t found = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t count[256] = {};
    const uint32_t above = shift == 24 ? 0 : ~uint32_t{0} << (shift + 8);
    for (int64_t i = 0; i < n; i++)
      if ((choices[i].key & above) == found) count[choices[i].key >> shift & 255]++;
    int digit = 255;
    for (; capacity > count[digit]; digit--) capacity -= count[digit];
    found |= static_cast<uint32_t>(digit) << shift;
  }
  *room = capacity;
  return found;
}

}  // namespace

void limit_experts(Stream& s, In scores, Opt experts, int64_t e, int64_t capacity, Out kept) {
  const int64_t t = scores.size(0), k = scores.size(1), count = experts ? e : k;
  for (int64_t i = 0; i < t; i++)
    for (int64_t j = 0; j < k; j++) kept.row<int32_t>(i)[j] = -1;
  if (capacity == 0) return;
  s.parallel(count, 1, [&](int64_t begin, int64_t end, int worker) {
    const int64_t most = experts ? t * k : t;
    Choice* choices =
        static_cast<Choice*>(s.scratch(worker, static_cast<size_t>(most) * sizeof(Choice)));
    for (int64_t expert = begin; expert < end; expert++) {
      int64_t n = 0;
      for (int64_t i = 0; i < t; i++) {
        const float* score = scores.row<float>(i);
        if (!experts) choices[n++] = {i * k + expert, key_of(score[expert])};
        for (int64_t j = 0; experts && j < k; j++)
          if (experts.row<int32_t>(i)[j] == expert) choices[n++] = {i * k + j, key_of(score[j])};
      }
      int64_t room = n;
      const uint32_t last = n > capacity ? last_key(choices, n, capacity, &room) : 0;
      for (int64_t i = 0; i < n; i++) {
        const auto [at, key] = choices[i];
        if (key > last || (key == last && room-- > 0))
          kept.row<int32_t>(at / k)[at % k] = static_cast<int32_t>(expert);
      }
    }
  });
}
KERNEL(limit_experts)

void sort_experts(Stream& s, In experts, int64_t e, Out order, Out place, Out offsets) {
  const int64_t n = experts.size(0);
  const int32_t* expert = experts.data<int32_t>();
  int32_t *at = order.data<int32_t>(), *to = place.data<int32_t>(), *first = offsets.data<int32_t>();
  for (int64_t i = 0; i < n; i++)
    if (expert[i] >= e) {
      s.fail("experts[%lld] is %d, expected less than %lld", static_cast<long long>(i), expert[i],
             static_cast<long long>(e));
      break;
    }
  const auto known = [&](int64_t i) { return expert[i] >= 0 && expert[i] < e; };
  memset(first, 0, static_cast<size_t>(e + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < n; i++)
    if (known(i)) first[expert[i] + 1]++;
  for (int64_t i = 0; i < e; i++) first[i + 1] += first[i];
  for (int64_t i = first[e]; i < n; i++) at[i] = -1;
  int32_t* next = static_cast<int32_t*>(s.scratch(0, static_cast<size_t>(e) * sizeof(int32_t)));
  memcpy(next, first, static_cast<size_t>(e) * sizeof(int32_t));
  for (int64_t i = 0; i < n; i++) {
    to[i] = known(i) ? next[expert[i]]++ : -1;
    if (to[i] >= 0) at[to[i]] = static_cast<int32_t>(i);
  }
}
KERNEL(sort_experts)

void router_statistics(Stream& s, In logits, In experts, In kept, Out balance, Out z, Out load,
                       Out entropy, Out dropped, Out unserved) {
  const int64_t t = logits.size(0), e = logits.size(1), k = experts.size(1);
  double* prob = static_cast<double*>(s.scratch(0, static_cast<size_t>(2 * e) * sizeof(double)));
  double *chosen = prob + e, squares = 0, all = 0;
  int32_t *count = load.data<int32_t>(), lost = 0, alone = 0;
  for (int64_t j = 0; j < e; j++) prob[j] = chosen[j] = count[j] = 0;
  for (int64_t i = 0; i < t; i++) {
    const float* x = logits.row<float>(i);
    double most = -INFINITY, total = 0;
    for (int64_t j = 0; j < e; j++) most = x[j] > most ? x[j] : most;
    for (int64_t j = 0; j < e; j++) total += ::exp(x[j] - most);
    for (int64_t j = 0; j < e; j++) prob[j] += ::exp(x[j] - most) / total;
    squares += (most + ::log(total)) * (most + ::log(total));
    bool served = false;
    for (int64_t j = 0; j < k; j++) {
      const int32_t to = experts.row<int32_t>(i)[j], at = kept.row<int32_t>(i)[j];
      if (to >= 0 && to < e) chosen[to]++, all++;
      if (at >= 0 && at < e) count[at]++, served = true;
      lost += to >= 0 && at < 0;
    }
    alone += !served;
  }
  double together = 0, spread = 0;
  for (int64_t j = 0; j < e && all > 0; j++) {
    const double share = chosen[j] / all;
    together += share * prob[j] / static_cast<double>(t);
    if (share > 0) spread -= share * ::log(share);
  }
  *balance.data<float>() = static_cast<float>(static_cast<double>(e) * together);
  *z.data<float>() = static_cast<float>(t > 0 && e > 0 ? squares / static_cast<double>(t) : 0);
  *entropy.data<float>() = static_cast<float>(spread);
  *dropped.data<int32_t>() = lost;
  *unserved.data<int32_t>() = alone;
}
KERNEL(router_statistics)

}  // namespace ss::SS_LEVEL
