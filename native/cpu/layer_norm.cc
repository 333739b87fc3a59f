// y = (x - mean) / sqrt(variance + eps) * weight? + bias? over the last dimension. The variance is
// taken around the mean in a second pass; a row stays in the first-level cache in between.
#include <math.h>

#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

template <class X, class Y>
void norm_row(const X* x, const float* weight, const float* bias, float eps, int64_t d, float* row,
              Y* y) {
  Vec total{};
  for (int64_t j = 0; j < d; j += kLanes) {
    const Vec v = load_some(x + j, d - j);
    store(row + j, v);
    total += v;
  }
  const float mean = sum(total) / static_cast<float>(d);
  // The row is padded with its mean, which adds nothing to the squares.
  for (int64_t j = d; j % kLanes != 0; j++) row[j] = mean;
  Vec squares{};
  for (int64_t j = 0; j < d; j += kLanes) {
    const Vec v = load(row + j) - mean;
    squares += v * v;
  }
  const float scale = 1.0f / sqrtf(sum(squares) / static_cast<float>(d) + eps);
  for (int64_t j = 0; j < d; j += kLanes) {
    const int64_t left = d - j;
    Vec v = (load(row + j) - mean) * scale;
    if (weight) v *= load_some(weight + j, left);
    if (bias) v += load_some(bias + j, left);
    store_some(y + j, v, left);
  }
}

}  // namespace

void layer_norm(Stream& s, In x, Opt weight, Opt bias, float eps, Out y) {  // [t, d], [d] -> [t, d]
  const int64_t d = x.size(1);
  with_float(x.dtype(), [&](auto xt) {
    with_float(y.dtype(), [&](auto yt) {
      using X = decltype(xt);
      using Y = decltype(yt);
      s.parallel(x.size(0), 1, [&](int64_t begin, int64_t end, int worker) {
        float* row = static_cast<float*>(s.scratch(worker, (d + kLanes) * sizeof(float)));
        for (int64_t i = begin; i < end; i++)
          norm_row(x.row<X>(i), weight ? weight.data<float>() : nullptr,
                   bias ? bias.data<float>() : nullptr, eps, d, row, y.row<Y>(i));
      });
    });
  });
}
KERNEL(layer_norm)

}  // namespace ss::SS_LEVEL
