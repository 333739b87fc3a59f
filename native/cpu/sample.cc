// Draws one token a row: repetition penalty, temperature, top-k, top-p, min-p, in this order, each
// on what the one before has left. Greedy where the temperature is 0. The random number of a row
// comes from its own seed and position alone, so that a row's tokens do not depend on the batch.
#include <math.h>
#include <string.h>

#include "philox.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

struct Candidate {
  float weight;
  int32_t id;
};
// Larger weights first; of equal ones the smaller id.
SS_INLINE bool before(Candidate a, Candidate b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}
void sift(Candidate* heap, int64_t n, int64_t i) {
  const Candidate moved = heap[i];
  for (int64_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
    if (!before(heap[child], moved)) break;
    heap[i] = heap[child];
  }
  heap[i] = moved;
}

int64_t best_of(const float* x, int64_t v) {
  int64_t best = 0;
  for (int64_t i = 1; i < v; i++)
    if (x[i] > x[best] || x[best] != x[best]) best = i;
  return best;
}

// x becomes exp((x - largest) * scale): probabilities, but for a common factor. Returns their sum.
double weigh(float* x, int64_t v, float largest, float scale) {
  double total = 0;
  for (int64_t i = 0; i < v; i += kLanes) {
    store_some(x + i, exp((load_some(x + i, v - i) - largest) * scale), v - i);
    for (int64_t j = i; j < i + kLanes && j < v; j++) total += x[j];
  }
  return total;
}

// The first i with sum(weights[0..i]) > random * total; what is 0 is never chosen.
template <class Weight>
int64_t at_point(int64_t n, double point, Weight&& weight) {
  int64_t last = 0;
  for (int64_t i = 0; i < n; i++) {
    const double w = weight(i);
    if (w == 0) continue;
    last = i;
    if ((point -= w) < 0) break;
  }
  return last;
}

// Takes candidates by falling weight, as far as top-k, top-p and min-p allow, and draws from them.
int32_t draw_sorted(const float* weights, int64_t v, double total, Candidate* heap, int64_t top_k,
                    double top_p, float min_p, double random) {
  int64_t n = 0;
  for (int64_t i = 0; i < v; i++)
    if (weights[i] > 0) heap[n++] = {weights[i], static_cast<int32_t>(i)};
  for (int64_t i = n / 2; i-- > 0;) sift(heap, n, i);
  // The heap shrinks from its end; what was taken lies behind it, the best one last.
  int64_t left = n;
  const auto take = [&] {
    const Candidate top = heap[0];
    heap[0] = heap[--left];
    sift(heap, left, 0);
    heap[left] = top;
    return top.weight;
  };
  const auto taken = [&](int64_t i) { return heap[n - 1 - i]; };

  const int64_t most = top_k > 0 && top_k < n ? top_k : n;
  if (most < n) {
    total = 0;
    while (n - left < most) total += take();
  }
  double kept = 0;
  int64_t count = 0;
  for (; count < most; count++) {
    const float w = n - left > count ? taken(count).weight : take();
    if (count > 0 && (w < min_p || (top_p < 1 && kept >= top_p * total))) break;
    kept += w;
  }
  return taken(at_point(count, random * kept, [&](int64_t i) { return taken(i).weight; })).id;
}

// No filter but min-p: no order is needed.
int32_t draw_any(float* weights, int64_t v, double total, float min_p, double random) {
  if (min_p > 0) {
    total = 0;
    for (int64_t i = 0; i < v; i++) total += weights[i] = weights[i] < min_p ? 0 : weights[i];
  }
  return static_cast<int32_t>(at_point(v, random * total, [&](int64_t i) { return weights[i]; }));
}

SS_INLINE bool has_bit(const int32_t* bits, int64_t i) {
  return static_cast<uint32_t>(bits[i >> 5]) >> (i & 31) & 1u;
}

// Marks: one bit a token id that the row has seen, for the repetition penalty.
void process(float* x, int64_t v, const int32_t* marks, float penalty) {
  if (!marks || penalty == 1) return;
  for (int64_t i = 0; i < v; i++)
    if (has_bit(marks, i)) x[i] = x[i] > 0 ? x[i] / penalty : x[i] * penalty;
}

}  // namespace

void sample(Stream& s, In logits, In temperature, In top_k, In top_p, In min_p, In penalty, In seed,
            Opt stop, Opt quiet, OptInOut seen, InOut position, InOut token, InOut logprob) {
  const int64_t v = logits.size(1), aligned = (v * 4 + 63) / 64 * 64;
  s.parallel(logits.size(0), 1, [&](int64_t begin, int64_t end, int worker) {
    char* memory = static_cast<char*>(
        s.scratch(worker, static_cast<size_t>(aligned + v * int64_t{sizeof(Candidate)})));
    float* x = reinterpret_cast<float*>(memory);
    for (int64_t b = begin; b < end; b++) {
      const float* raw = logits.row<float>(b);
      const int32_t at = position.data<int32_t>()[b];
      int32_t* marks = seen ? seen.row<int32_t>(b) : nullptr;

      memcpy(x, raw, static_cast<size_t>(v) * sizeof(float));
      const float largest = x[best_of(x, v)];
      const double all = largest + log(weigh(x, v, largest, 1));

      memcpy(x, raw, static_cast<size_t>(v) * sizeof(float));
      process(x, v, marks, penalty.data<float>()[b]);
      if (stop && quiet && at < quiet.data<int32_t>()[b])
        for (int64_t i = 0; i < stop.size(0); i++)
          if (const int32_t id = stop.data<int32_t>()[i]; id >= 0 && id < v) x[id] = -INFINITY;

      const int64_t best = best_of(x, v);
      int32_t chosen = static_cast<int32_t>(best);
      const float t = temperature.data<float>()[b];
      if (!isfinite(all) || !isfinite(x[best])) {
        s.fail("the logits of row %lld are not finite", static_cast<long long>(b));
      } else if (t > 0) {
        const uint32_t* key = reinterpret_cast<const uint32_t*>(seed.row<int32_t>(b));
        const double random = uniform(key[0], key[1], static_cast<uint32_t>(at));
        const int64_t k = top_k.data<int32_t>()[b];
        const float p = top_p.data<float>()[b], least = min_p.data<float>()[b];
        const double total = weigh(x, v, x[best], 1 / t);
        chosen = k > 0 || p < 1
                     ? draw_sorted(x, v, total, reinterpret_cast<Candidate*>(memory + aligned), k, p,
                                   least, random)
                     : draw_any(x, v, total, least, random);
      }
      logprob.data<float>()[b] = static_cast<float>(raw[chosen] - all);
      token.data<int32_t>()[b] = chosen;
      position.data<int32_t>()[b] = at + 1;
      if (marks) marks[chosen >> 5] |= static_cast<int32_t>(1u << (chosen & 31));
    }
  });
}
KERNEL(sample)

}  // namespace ss::SS_LEVEL
