// An optimizer's step over all parameters at once. Each element is met once: memory bound.
#include <math.h>

#include "room.h"
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kPiece = 16384;  // elements that a thread takes at a time, and whose sums are apart

template <class F>
void for_pieces(Stream& s, int64_t n, F&& body) {
  s.parallel((n + kPiece - 1) / kPiece, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; p++) body(p, p * kPiece, n < (p + 1) * kPiece ? n : (p + 1) * kPiece);
  });
}

struct Scaler {
  float scale, streak, steps, skipped, norm, loss;
};
struct Control {
  float take, factor, rate, first, second;
};

}  // namespace

void add_squares(Stream& s, In x, InOut sum) {  // [n], [1]
  const int64_t n = x.size(0), pieces = (n + kPiece - 1) / kPiece;
  const Room room(s, 2 * pieces);
  if (!room) return;
  double* parts = reinterpret_cast<double*>(room.floats());
  const float* from = x.data<float>();
  for_pieces(s, n, [&](int64_t p, int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec v = load_some(from + i, end - i);
      total += static_cast<double>(ss::SS_LEVEL::sum(v * v));
    }
    parts[p] = total;
  });
  double total = 0;
  for (int64_t p = 0; p < pieces; p++) total += parts[p];
  *sum.data<float>() = static_cast<float>(*sum.data<float>() + total);
}
KERNEL(add_squares)

void plan_step(Stream&, InOut squares, InOut loss, In rate, InOut scaler, float max_norm, float beta1,
               float beta2, float interval, Out control) {
  Scaler& at = *reinterpret_cast<Scaler*>(scaler.data<float>());
  Control& out = *reinterpret_cast<Control*>(control.data<float>());
  const double norm = ::sqrt(static_cast<double>(*squares.data<float>())) / at.scale;
  at.norm = static_cast<float>(norm);
  at.loss = *loss.data<float>() / at.scale;
  const bool take = norm - norm == 0 && at.loss - at.loss == 0;
  *squares.data<float>() = take || interval > 0 ? 0 : NAN;  // without a scale to change no step follows
  *loss.data<float>() = 0;
  const double clip = max_norm > 0 && norm > max_norm ? max_norm / (norm + 1e-6) : 1;
  out.take = take;
  out.factor = take ? static_cast<float>(clip / at.scale) : 0;
  out.rate = *rate.data<float>();
  at.steps += take;
  at.skipped += !take;
  out.first = static_cast<float>(1 - ::pow(static_cast<double>(beta1), static_cast<double>(at.steps)));
  out.second = static_cast<float>(1 - ::pow(static_cast<double>(beta2), static_cast<double>(at.steps)));
  if (!(interval > 0)) return;
  at.streak = take ? at.streak + 1 : 0;
  if (!take) at.scale = at.scale * 0.5f;
  if (at.streak < interval) return;
  at.streak = 0;
  if (at.scale < 0x1p24f) at.scale *= 2;
}
KERNEL(plan_step)

void adamw(Stream& s, InOut parameter, InOut m, InOut v, In gradient, In control, OptInOut copy,
           float beta1, float beta2, float eps, float decay) {
  const Control c = *reinterpret_cast<const Control*>(control.data<float>());
  if (c.take == 0) return;
  float *p = parameter.data<float>(), *first = m.data<float>(), *second = v.data<float>();
  const float* g = gradient.data<float>();
  const float keep = 1 - c.rate * decay, step = c.rate / c.first, root = 1 / sqrtf(c.second);
  for_pieces(s, parameter.size(0), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t left = end - i;
      const Vec g_i = load_some(g + i, left) * c.factor;
      const Vec m_i = load_some(first + i, left) * beta1 + g_i * (1 - beta1);
      const Vec v_i = load_some(second + i, left) * beta2 + g_i * g_i * (1 - beta2);
      Vec size;
      for (int k = 0; k < kLanes; k++) size[k] = sqrtf(v_i[k]);
      const Vec p_i = load_some(p + i, left) * keep - m_i * step / (size * root + eps);
      store_some(first + i, m_i, left);
      store_some(second + i, v_i, left);
      store_some(p + i, p_i, left);
      if (copy)
        with_float(copy.dtype(), [&](auto t) { store_some(copy.data<decltype(t)>() + i, p_i, left); });
    }
  });
}
KERNEL(adamw)

void move_average(Stream& s, InOut average, In x, float decay) {
  float* to = average.data<float>();
  const float* from = x.data<float>();
  for_pieces(s, x.size(0), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec old = load_some(to + i, end - i);
      store_some(to + i, old + (load_some(from + i, end - i) - old) * (1 - decay), end - i);
    }
  });
}
KERNEL(move_average)

}  // namespace ss::SS_LEVEL
