// Complex numbers in f64, for what is made once and used in f32.
#pragma once
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

struct Complex {
  double re, im;
};
SS_INLINE Complex plus(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
SS_INLINE Complex times(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
SS_INLINE Complex times(double a, Complex b) { return {a * b.re, a * b.im}; }
// a* b
SS_INLINE Complex against(Complex a, Complex b) {
  return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}
SS_INLINE Complex over(Complex a, Complex b) {
  const double size = b.re * b.re + b.im * b.im;
  return {(a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size};
}

// Number j of a row of (real, imaginary).
SS_INLINE Complex complex_at(const float* row, int64_t j) { return {row[2 * j], row[2 * j + 1]}; }
SS_INLINE void put_complex(float* row, int64_t j, Complex a) {
  row[2 * j] = static_cast<float>(a.re);
  row[2 * j + 1] = static_cast<float>(a.im);
}

}  // namespace
}  // namespace ss::SS_LEVEL
