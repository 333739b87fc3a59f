// dx = dy factor f'(x), dfactor = dy f(x), f as in activate: each element once, memory bound.
#include "gelu.h"

namespace ss::SS_LEVEL {
namespace {

SS_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// f(x) and f'(x).
struct Both {
  Vec value, slope;
};
template <int Kind>
SS_INLINE Both both(Vec x) {
  if constexpr (Kind == 0) return {at_least(x, 0.0f), select(x > 0.0f, splat(1), select(x == x, Vec{}, x))};
  if constexpr (Kind == 1) return {gelu(x), gelu_slope(x)};
  const Vec s = sigmoid(x);
  if constexpr (Kind == 2) {
    const Vec near = at_most(at_least(x, -90.0f), 90.0f);  // infinity times 0 would be NaN
    return {times_sigmoid(x), s + near * s * (1.0f - s)};
  }
  if constexpr (Kind == 3) return {s, s * (1.0f - s)};
}

template <class T, int Kind>
void map_back(Stream& s, In x, Opt factor, In dy, Out dx, Out dfactor) {
  const int64_t d = x.size(1);
  s.parallel(x.size(0), 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t j = 0; j < d; j += kLanes) {
        const int64_t left = d - j;
        const Both f = both<Kind>(load_some(x.row<T>(i) + j, left));
        Vec g = load_some(dy.row<T>(i) + j, left);
        if (factor) {
          store_some(dfactor.row<T>(i) + j, g * f.value, left);
          g *= load_some(factor.row<T>(i) + j, left);
        }
        store_some(dx.row<T>(i) + j, g * f.slope, left);
      }
  });
}

}  // namespace

// [t, d], three times
void activate_backward(Stream& s, In x, Opt factor, In dy, int64_t kind, Out dx, Out dfactor) {
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (kind == 0)
      map_back<T, 0>(s, x, factor, dy, dx, dfactor);
    else if (kind == 1)
      map_back<T, 1>(s, x, factor, dy, dx, dfactor);
    else if (kind == 2)
      map_back<T, 2>(s, x, factor, dy, dx, dfactor);
    else
      map_back<T, 3>(s, x, factor, dy, dx, dfactor);
  });
}
KERNEL(activate_backward)

}  // namespace ss::SS_LEVEL
