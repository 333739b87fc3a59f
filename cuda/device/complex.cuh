// Complex numbers in f64, for what few threads make once and many use in f32.
#pragma once
#include <stdint.h>

namespace ss::cuda {

struct Complex {
  double re, im;
};

__device__ inline Complex times(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ inline Complex over(Complex a, Complex b) {
  const double size = b.re * b.re + b.im * b.im;
  return {(a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size};
}
__device__ inline float2 rounded(Complex a) {
  return {static_cast<float>(a.re), static_cast<float>(a.im)};
}
// base^exponent, by squares.
__device__ inline Complex power(Complex base, int64_t exponent) {
  Complex result{1, 0};
  for (; exponent > 0; exponent /= 2, base = times(base, base))
    if (exponent % 2 == 1) result = times(result, base);
  return result;
}

}  // namespace ss::cuda
