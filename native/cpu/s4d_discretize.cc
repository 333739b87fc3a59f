// E = Abar - 1 and W = C Bbar of a diagonal system, one complex number a state: by zero-order hold
//   E = exp(dt A) - 1, Bbar = E / A;   by the bilinear rule E = dt A / (1 - dt A / 2), Bbar = E / A
// with A = -exp(log_a_real) + i a_imag, dt = exp(log_dt). In f64: once for each set of weights.
#include <math.h>

#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

struct Complex {
  double re, im;
};
SS_INLINE Complex times(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
SS_INLINE Complex over(Complex a, Complex b) {
  const double size = b.re * b.re + b.im * b.im;
  return {(a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size};
}

}  // namespace

void s4d_discretize(Stream& s, In log_dt, In log_a_real, In a_imag, Opt B, In C, bool bilinear, Out E,
                    Out W) {
  const int64_t d = log_a_real.size(0), n = log_a_real.size(1);
  s.parallel(d, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; c++) {
      const double dt = exp(static_cast<double>(log_dt.data<float>()[c]));
      for (int64_t j = 0; j < n; j++) {
        const Complex A{-exp(static_cast<double>(log_a_real.row<float>(c)[j])),
                        a_imag.row<float>(c)[j]};
        const Complex z{dt * A.re, dt * A.im};
        Complex e, input;  // Bbar / B
        if (bilinear) {
          const Complex below{1 - z.re / 2, -z.im / 2};
          e = over(z, below);
          input = over({dt, 0}, below);
        } else {
          const double half = sin(z.im / 2);
          e = {expm1(z.re) * cos(z.im) - 2 * half * half, exp(z.re) * sin(z.im)};
          // Where A underflows to 0 the hold is a plain sum.
          input = A.re == 0 && A.im == 0 ? Complex{dt, 0} : over(e, A);
        }
        const auto pair = [&](const float* x) { return Complex{x[2 * j], x[2 * j + 1]}; };
        if (B) input = times(input, pair(B.row<float>(c)));
        const Complex w = times(input, pair(C.row<float>(c)));
        E.row<float>(c)[2 * j] = static_cast<float>(e.re);
        E.row<float>(c)[2 * j + 1] = static_cast<float>(e.im);
        W.row<float>(c)[2 * j] = static_cast<float>(w.re);
        W.row<float>(c)[2 * j + 1] = static_cast<float>(w.im);
      }
    }
  });
}
KERNEL(s4d_discretize)

}  // namespace ss::SS_LEVEL
