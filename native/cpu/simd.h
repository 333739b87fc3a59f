// Vectors of floats, one width per instruction level. Every file in this folder that includes this
// one is compiled once per level into the namespace SS_LEVEL (v4, v3, base): see CMakeLists.txt.
// GCC and clang vector extensions only, so that one source serves AVX-512, AVX2, SSE and NEON.
#pragma once
#include <stdint.h>
#include <string.h>

#include "../kernel.h"
#include "stream.h"

#ifndef SS_LEVEL
#error "compile with -DSS_LEVEL=<v4|v3|base>"
#endif

namespace ss::SS_LEVEL {

extern const Kernel* kernels;  // of this level; level.cc holds it

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));

SS_INLINE Vec splat(float x) { return x - Vec{}; }
SS_INLINE VecI splat_int(int32_t x) { return x - VecI{}; }

template <class To, class From>
SS_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// One element to f32 and back; rounding to nearest even, NaN kept.
SS_INLINE float to_float(float x) { return x; }
SS_INLINE float to_float(bf16 x) { return bits<float>(uint32_t{x.bits} << 16); }
SS_INLINE float to_float(f16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, body = x.bits & 0x7fffu;
  if (body >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (body & 0x3ffu) << 13);
  return bits<float>(sign | bits<uint32_t>(bits<float>(body << 13) * 0x1p112f));
}
SS_INLINE void from_float(float& to, float x) { to = x; }
SS_INLINE void from_float(bf16& to, float x) {
  const uint32_t u = bits<uint32_t>(x);
  to.bits = static_cast<uint16_t>(x != x ? (u >> 16 | 0x40u) : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
SS_INLINE void from_float(f16& to, float x) {
  const uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
  uint32_t h;
  if (a > 0x7f800000u)
    h = 0x7e00u;
  else if (a >= 0x477ff000u)  // rounds to 65,536 or more
    h = 0x7c00u;
  else if (a < 0x38800000u)  // subnormal: adding 0.5 leaves the rounded value in the low bits
    h = bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000u;
  else
    h = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
  to.bits = static_cast<uint16_t>(sign | h);
}

SS_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof(v));
  return v;
}
SS_INLINE Vec load(const bf16* p) {
  VecH h;
  memcpy(&h, p, sizeof(h));
  return bits<Vec>(__builtin_convertvector(h, VecU) << 16);
}
SS_INLINE Vec load(const f16* p) {
  VecH h;
  memcpy(&h, p, sizeof(h));
  const VecU u = __builtin_convertvector(h, VecU), body = u & 0x7fffu;
  const Vec finite = bits<Vec>(body << 13) * splat(0x1p112f);
  const VecU special = body << 13 | 0x7f800000u;
  const VecU is_special = bits<VecU>(body >= 0x7c00u);
  return bits<Vec>((u & 0x8000u) << 16 | (is_special & special) | (~is_special & bits<VecU>(finite)));
}
// The first n < kLanes elements, the rest zero.
template <class T>
SS_INLINE Vec load_part(const T* p, int64_t n) {
  T part[kLanes] = {};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return load(part);
}
SS_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof(v)); }
SS_INLINE void store(bf16* p, Vec v) {
  const VecU u = bits<VecU>(v), nearest = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  const VecH h = __builtin_convertvector(v == v ? nearest : (u >> 16 | 0x40u), VecH);
  memcpy(p, &h, sizeof(h));
}
SS_INLINE void store(f16* p, Vec v) {
  const VecU u = bits<VecU>(v), a = u & 0x7fffffffu;
  const VecU normal = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
  const VecU subnormal = bits<VecU>(bits<Vec>(a) + 0.5f) - 0x3f000000u;
  VecU h = a < 0x38800000u ? subnormal : normal;
  h = a >= 0x477ff000u ? VecU{} + 0x7c00u : h;  // rounds to 65,536 or more
  h = a > 0x7f800000u ? VecU{} + 0x7e00u : h;
  const VecH out = __builtin_convertvector(h | (u >> 16 & 0x8000u), VecH);
  memcpy(p, &out, sizeof(out));
}
template <class T>
SS_INLINE void store_part(T* p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; i++) from_float(p[i], v[i]);
}

// A whole vector where there is one, else the part of it.
template <class T>
SS_INLINE Vec load_some(const T* p, int64_t left) {
  return left >= kLanes ? load(p) : load_part(p, left);
}
template <class T>
SS_INLINE void store_some(T* p, Vec v, int64_t left) {
  left >= kLanes ? store(p, v) : store_part(p, v, left);
}

SS_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
SS_INLINE Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }

// Sum of the lanes, always in the same order: halves are folded onto each other.
SS_INLINE float sum(Vec v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

// Calls f with a value of the element type that `t` names.
template <class F>
SS_INLINE void with_float(DType t, F&& f) {
  if (t == DType::f32)
    f(float{});
  else if (t == DType::bf16)
    f(bf16{});
  else
    f(f16{});
}

}  // namespace ss::SS_LEVEL
