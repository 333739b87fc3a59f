// One state of a diagonal system, made discrete in f64: Abar - 1 and Bbar / B, and how both change.
#pragma once
#include <math.h>

#include "complex.h"

namespace ss::SS_LEVEL {
namespace {

struct S4dState {
  Complex A, z;         // z: dt A
  Complex e, input;     // Abar - 1, Bbar / B
  Complex slope, curve; // de / dz; (d input / dA) / dt^2
};

SS_INLINE S4dState s4d_state(double dt, double log_a_real, double a_imag, bool bilinear) {
  S4dState s;
  s.A = {-exp(log_a_real), a_imag};
  s.z = {dt * s.A.re, dt * s.A.im};
  if (bilinear) {
    const Complex q = over({1, 0}, {1 - s.z.re / 2, -s.z.im / 2});
    s.e = times(s.z, q);
    s.input = times(dt, q);
    s.slope = times(q, q);
    s.curve = times(0.5, s.slope);
    return s;
  }
  const double half = sin(s.z.im / 2);
  s.e = {expm1(s.z.re) * cos(s.z.im) - 2 * half * half, exp(s.z.re) * sin(s.z.im)};
  // Where A underflows to 0 the hold is a plain sum.
  s.input = s.A.re == 0 && s.A.im == 0 ? Complex{dt, 0} : over(s.e, s.A);
  s.slope = {1 + s.e.re, s.e.im};
  const Complex square = times(s.z, s.z);
  if (s.z.re * s.z.re + s.z.im * s.z.im < 1e-8) {  // the difference below would cancel
    s.curve = plus({0.5, 0}, plus(times(1.0 / 3, s.z), times(0.125, square)));
  } else {
    const Complex grown = times(s.slope, s.z);
    s.curve = over({grown.re - s.e.re, grown.im - s.e.im}, square);
  }
  return s;
}

}  // namespace
}  // namespace ss::SS_LEVEL
