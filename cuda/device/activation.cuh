// exp2, softplus and silu through the special-function unit. It answers 16 lanes a clock where the
// rest of a multiprocessor does 128, so they use it as little as accuracy allows. The intrinsics
// flush subnormals: the plain forms spend three more instructions on them.
#pragma once

namespace ss::cuda {

constexpr float kLog2e = 0x1.715476p0f;

// 2 ulp.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 ulp.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): log1p is needed on [0, 1] only, where a polynomial
// keeps the small values that log2 would lose. From x = 17 on the result is x itself.
__device__ __forceinline__ float softplus(float x) {
  const float e = exp2_approx(fabsf(x) * -kLog2e);
  float p = fmaf(e, -0x1.af5e2p-9f, 0x1.49211cp-6f);
  p = fmaf(p, e, -0x1.d6b75ep-5f);
  p = fmaf(p, e, 0x1.b4b094p-4f);
  p = fmaf(p, e, -0x1.3a43ep-3f);
  p = fmaf(p, e, 0x1.934b6ep-3f);
  p = fmaf(p, e, -0x1.ff23e8p-3f);
  p = fmaf(p, e, 0x1.554ddp-2f);
  p = fmaf(p, e, -0x1.ffffd2p-2f);
  return fmaxf(x, 0.0f) + fmaf(p * e, e, e);
}

// As exact as results that are rounded to T need: to 9e-6 where T has 16 bits.
template <class T>
__device__ __forceinline__ float softplus_for(float x) {
  if constexpr (sizeof(T) == 4) return softplus(x);
  const float e = exp2_approx(fabsf(x) * -kLog2e);
  float p = fmaf(e, -0x1.87127cp-6f, 0x1.9e9b46p-4f);
  p = fmaf(p, e, -0x1.ae2e06p-3f);
  p = fmaf(p, e, 0x1.4d02fcp-2f);
  p = fmaf(p, e, -0x1.ff5896p-2f);
  p = fmaf(p, e, 0x1.fffee6p-1f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

__device__ __forceinline__ float silu(float x) {
  return x * reciprocal_approx(1.0f + exp2_approx(x * -kLog2e));
}

}  // namespace ss::cuda
