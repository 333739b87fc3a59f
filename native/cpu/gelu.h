// The normal distribution's Phi, of which GELU is made: x Phi(x).
#pragma once
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

// Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by formula 7.1.26 of Abramowitz and Stegun: within 1.5e-7 of erf,
// and with the exponential's own tail. NaN where x is infinite, too.
SS_INLINE Vec normal_tail(Vec size) {
  const Vec t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
  Vec p = t * (0.5f * 1.061405429f) - 0.5f * 1.453152027f;
  p = p * t + 0.5f * 1.421413741f;
  p = p * t - 0.5f * 0.284496736f;
  p = p * t + 0.5f * 0.254829592f;
  return p * t * exp(size * size * -0.5f);
}
SS_INLINE Vec magnitude(Vec x) { return bits<Vec>(bits<VecI>(x) & splat_int(INT32_MAX)); }

SS_INLINE Vec gelu(Vec x) {
  const Vec size = magnitude(x), tail = size * normal_tail(size);
  return at_least(x, 0.0f) - (tail == tail ? tail : select(x == x, Vec{}, x));
}

// d gelu / dx = Phi(x) + x phi(x)
SS_INLINE Vec gelu_slope(Vec x) {
  const Vec size = magnitude(x), tail = normal_tail(size);
  const Vec near = at_most(at_least(x, -20.0f), 20.0f);  // beyond, phi is 0; infinity would make it NaN
  return select(x > 0.0f, 1.0f - tail, tail) + near * 0.39894228f * exp(near * near * -0.5f);
}

}  // namespace
}  // namespace ss::SS_LEVEL
