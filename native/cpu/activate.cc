// y = f(x) * factor, f being ReLU, GELU, SiLU or the sigmoid: each element once, memory bound.
#include "gelu.h"

namespace ss::SS_LEVEL {
namespace {

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
