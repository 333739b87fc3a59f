// exp, softplus, silu and the scan's exp2 on vectors. NaN stays NaN, what is too large
// becomes infinity, what is too small 0 (below 2^-125.5 already where there is no AVX-512).
#pragma once
#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace ss::SS_LEVEL {

#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // the unmasked intrinsics warn of an unset operand in GCC 12
#endif

// x, but at least `low`; NaN stays. Written with ?: it compiles to a compare and a blend, which
// made a scan 12 % slower.
SS_INLINE Vec at_least(Vec x, float low) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(kAll, splat(low), x);
#elif defined(__AVX__)
  return _mm256_max_ps(splat(low), x);
#elif defined(__SSE__)
  return _mm_max_ps(splat(low), x);
#else
  return select(splat(low) > x, splat(low), x);
#endif
}
SS_INLINE Vec at_most(Vec x, float high) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(kAll, splat(high), x);
#elif defined(__AVX__)
  return _mm256_min_ps(splat(high), x);
#elif defined(__SSE__)
  return _mm_min_ps(splat(high), x);
#else
  return select(splat(high) < x, splat(high), x);
#endif
}

// Rounds here and now. Which of two products the compiler fuses into their sum may differ from one
// copy of a loop to the next, and results would with it.
SS_INLINE Vec rounded(Vec x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE__)
  asm("" : "+x"(x));
#else
  asm("" : "+w"(x));
#endif
  return x;
}

// x = whole + rest with |rest| <= 1/2; scaled(p * kUnit, scale) is p * 2^whole.
struct Split {
  Vec whole, rest, scale;
};
#if defined(__AVX512DQ__)
// Two instructions that know about infinities and subnormals: 2.8 ns for 16 steps of one state in
// the scan, against 3.3 ns with the portable form below.
constexpr float kUnit = 1.0f;
SS_INLINE Split split(Vec x) {
  const Vec rest = _mm512_maskz_reduce_ps(kAll, x, 8);  // 0 for infinities
  return {x - rest, rest, x - rest};
}
SS_INLINE Vec scaled(Vec p, Vec scale) { return _mm512_maskz_scalef_ps(kAll, p, scale); }
#else
// Adding kShift leaves the nearest integer, plus 126, in the low bits. So scale is 2^(whole - 1),
// which is finite for whole <= 128 and 0 for whole = -126. x must be in [-126, 128] or NaN.
constexpr float kUnit = 2.0f, kShift = 0x1.8p23f + 126.0f;
SS_INLINE Split split(Vec x) {
  const Vec shifted = x + kShift, whole = shifted - kShift;
  return {whole, x - whole, bits<Vec>(bits<VecI>(shifted) << 23)};
}
SS_INLINE Vec scaled(Vec p, Vec scale) { return p * scale; }
#endif

// 2^x h + b, one step of a scan, as h 2^whole, which is exact, and the small rest of the change. So
// slow decay (x near 0) keeps its rate: 100,000 steps of delta = 0.001 stay 7e-7 from the f64
// answer, where rounding 2^x first gave 7e-6 and expf 1.3e-5; fast decay leaves no h behind.
// 2^rest is known to 1.05e-7, near 0 exactly. What overflows is infinite or NaN.
SS_INLINE Vec exp2_mul_add(Vec x, Vec h, Vec b) {
#if !defined(__AVX512DQ__)
  x = at_most(at_least(x, -126.0f), 128.0f);
#endif
  const Split s = split(x);
  Vec p = s.rest * (kUnit * 0x1.5ca92cp-10f) + kUnit * 0x1.3cdafep-7f;
  p = p * s.rest + kUnit * 0x1.c6b3a8p-5f;
  p = p * s.rest + kUnit * 0x1.ebf9f2p-3f;
  p = p * s.rest + kUnit * 0x1.62e43p-1f;
  h = scaled(h, s.scale);
  return h * kUnit + (p * s.rest * h + b);
}

// e^x, with x - whole * ln 2 taken in two parts. 0.8 ulp (1.1 without fused multiply-add).
SS_INLINE Vec exp(Vec x) {
#if defined(__AVX512DQ__)
  x = at_most(at_least(x, -105.0f), 90.0f);
#else
  x = at_most(at_least(x, -87.336f), 88.9f);  // whole in [-126, 128]
#endif
  const Split s = split(x * 0x1.715476p0f);
  const Vec r = x - s.whole * 0x1.62e4p-1f - s.whole * 0x1.7f7d1cp-20f;
  Vec p = r * (kUnit * 0x1.6a524ep-10f) + kUnit * 0x1.12396ep-7f;
  p = p * r + kUnit * 0x1.5558aap-5f;
  p = p * r + kUnit * 0x1.555492p-3f;
  p = p * r + kUnit * 0x1.fffffcp-2f;
  p = p * r + kUnit;
  return scaled(p * r + kUnit, s.scale);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): log1p is needed on [0, 1] only, where nine terms give
// 5e-9. From x = 17 on the result is x itself. 1.7 ulp (2.0).
SS_INLINE Vec softplus(Vec x) {
  const Vec e = exp(bits<Vec>(bits<VecI>(x) | splat_int(INT32_MIN)));
  Vec p = e * -0x1.af5e2p-9f + 0x1.49211cp-6f;
  p = p * e - 0x1.d6b75ep-5f;
  p = p * e + 0x1.b4b094p-4f;
  p = p * e - 0x1.3a43ep-3f;
  p = p * e + 0x1.934b6ep-3f;
  p = p * e - 0x1.ff23e8p-3f;
  p = p * e + 0x1.554ddp-2f;
  p = p * e - 0x1.ffffd2p-2f;
  return at_least(x, 0.0f) + (p * e * e + e);
}

// Both 2.0 ulp.
SS_INLINE Vec times_sigmoid(Vec x) { return x / (1.0f + exp(-x)); }  // silu

}  // namespace ss::SS_LEVEL
