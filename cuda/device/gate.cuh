// What stands between an expert's two matrices; `kind` as in the op activate.
#pragma once
#include <math.h>

#include "activation.cuh"

namespace ss::cuda {

template <int Kind>
__device__ inline float activated(float x) {
  if constexpr (Kind == 0) return x != x ? x : fmaxf(x, 0.0f);
  // Where erfc is 0 in f32; -infinity would make it NaN.
  if constexpr (Kind == 1) return x < -20.0f ? -0.0f : 0.5f * x * erfcf(x * -0.70710678f);
  if constexpr (Kind == 2) return x / (1.0f + expf(-x));
  if constexpr (Kind == 3) return 1.0f / (1.0f + expf(-x));
}

__device__ inline float activated(float x, int kind) {
  return kind == 0 ? activated<0>(x) : kind == 1 ? activated<1>(x) : activated<2>(x);
}

// The same for what will be rounded to a half, in a third of the instructions: within 2e-7 of f32's.
// GELU is x Phi(x) with Phi(-|x|) by formula 7.1.26 of Abramowitz and Stegun.
__device__ inline float activated_briefly(float x, int kind) {
  if (kind == 0) return activated<0>(x);
  if (kind == 2) return silu(x);
  const float size = fabsf(x), t = reciprocal_approx(fmaf(size, 0.3275911f * 0.70710678f, 1.0f));
  float p = fmaf(t, 0.5f * 1.061405429f, -0.5f * 1.453152027f);
  p = fmaf(p, t, 0.5f * 1.421413741f);
  p = fmaf(p, t, -0.5f * 0.284496736f);
  p = fmaf(p, t, 0.5f * 0.254829592f);
  const float tail = size * (p * t * exp2_approx(x * x * (-0.5f * kLog2e)));
  // Infinity times 0 is what an infinite x leaves of the tail.
  return fmaxf(x, 0.0f) - (tail == tail ? tail : x == x ? 0.0f : x);
}

}  // namespace ss::cuda
