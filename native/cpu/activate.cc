// y = f(x) * factor, f being ReLU, GELU, SiLU or the sigmoid: each element once, memory bound.
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

// x Phi(x), Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by formula 7.1.26 of Abramowitz and Stegun: within
// 1.5e-7 of erf, and with the exponential's own tail.
SS_INLINE Vec gelu(Vec x) {
  const Vec size = bits<Vec>(bits<VecI>(x) & splat_int(INT32_MAX));
  const Vec t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
  Vec p = t * (0.5f * 1.061405429f) - 0.5f * 1.453152027f;
  p = p * t + 0.5f * 1.421413741f;
  p = p * t - 0.5f * 0.284496736f;
  p = p * t + 0.5f * 0.254829592f;
  const Vec tail = size * (p * t * exp(x * x * -0.5f));
  return at_least(x, 0.0f) - (tail == tail ? tail : select(x == x, Vec{}, x));
}

template <class T, class F>
void map(Stream& s, In x, Opt factor, Out y, F&& f) {
  const int64_t d = x.size(1);
  s.parallel(x.size(0), 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t j = 0; j < d; j += kLanes) {
        Vec v = f(load_some(x.row<T>(i) + j, d - j));
        if (factor) v *= load_some(factor.row<T>(i) + j, d - j);
        store_some(y.row<T>(i) + j, v, d - j);
      }
  });
}

}  // namespace

void activate(Stream& s, In x, Opt factor, int64_t kind, Out y) {  // [t, d] -> [t, d]
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (kind == 0)
      map<T>(s, x, factor, y, [](Vec v) { return at_least(v, 0.0f); });
    else if (kind == 1)
      map<T>(s, x, factor, y, [](Vec v) { return gelu(v); });
    else if (kind == 2)
      map<T>(s, x, factor, y, [](Vec v) { return times_sigmoid(v); });
    else
      map<T>(s, x, factor, y, [](Vec v) { return 1.0f / (1.0f + exp(-v)); });
  });
}
KERNEL(activate)

}  // namespace ss::SS_LEVEL
