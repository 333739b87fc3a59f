// y = x * rsqrt(mean(x^2) + eps) * weight over the last dimension, of x or of x + residual.
// One pass to sum the squares, one to scale; a row stays in the first-level cache in between.
#include <math.h>

#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

template <class T>
void scale_row(const float* x, const float* weight, float squares, float eps, int64_t d, T* y) {
  const Vec scale = splat(1.0f / sqrtf(squares / static_cast<float>(d) + eps));
  for (int64_t j = 0; j < d; j += kLanes)
    store_some(y + j, load_some(x + j, d - j) * scale * load_some(weight + j, d - j), d - j);
}

}  // namespace

void rms_norm(Stream& s, In x, In weight, float eps, Out y) {  // [t, d], [d] -> [t, d]
  const int64_t d = x.size(1);
  with_float(x.dtype(), [&](auto xt) {
    with_float(y.dtype(), [&](auto yt) {
      using X = decltype(xt);
      using Y = decltype(yt);
      s.parallel(x.size(0), 1, [&](int64_t begin, int64_t end, int worker) {
        float* row = static_cast<float*>(s.scratch(worker, (d + kLanes) * sizeof(float)));
        for (int64_t i = begin; i < end; i++) {
          const X* from = x.row<X>(i);
          Vec squares{};
          for (int64_t j = 0; j < d; j += kLanes) {
            const Vec v = load_some(from + j, d - j);
            store(row + j, v);
            squares += v * v;
          }
          scale_row(row, weight.data<float>(), sum(squares), eps, d, y.row<Y>(i));
        }
      });
    });
  });
}
KERNEL(rms_norm)

// sum = residual + x in f32, then the norm of sum.
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total) {
  const int64_t d = x.size(1);
  with_float(x.dtype(), [&](auto xt) {
    using X = decltype(xt);
    s.parallel(x.size(0), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const X* from = x.row<X>(i);
        const float* carried = residual.row<float>(i);
        float* row = total.row<float>(i);
        Vec squares{};
        for (int64_t j = 0; j < d; j += kLanes) {
          const Vec v = load_some(carried + j, d - j) + load_some(from + j, d - j);
          store_some(row + j, v, d - j);
          squares += v * v;
        }
        scale_row(row, weight.data<float>(), sum(squares), eps, d, y.row<X>(i));
      }
    });
  });
}
KERNEL(add_rms_norm)

}  // namespace ss::SS_LEVEL
