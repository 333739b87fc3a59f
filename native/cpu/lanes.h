// Rows of per-channel values and how kernels hold them whose lanes are channels: turned, so that a
// vector has one value of kLanes channels.
#pragma once
#include "simd.h"

namespace ss::SS_LEVEL {

// v[i][j] <-> v[j][i], by swapping ever smaller off-diagonal squares. Unrolled early, or the
// vectors would go through memory at every level, and a decode step take 28 us for 21.
template <int Half, int... I>
SS_INLINE void swap_squares(Vec (&v)[kLanes], Indices<I...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i & Half) continue;
    const Vec a = v[i], b = v[i + Half];
    v[i] = __builtin_shufflevector(a, b, (I & Half ? kLanes + I - Half : I)...);
    v[i + Half] = __builtin_shufflevector(a, b, (I & Half ? kLanes + I : I + Half)...);
  }
}
template <int Half = kLanes / 2>
SS_INLINE void transpose(Vec (&v)[kLanes]) {
  swap_squares<Half>(v, typename MakeIndices<kLanes>::type{});
  if constexpr (Half > 1) transpose<Half / 2>(v);
}
SS_INLINE void transpose(const float* from, int64_t from_stride, float scale, float* to,
                         int64_t to_stride) {
  Vec v[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) v[i] = load(from + i * from_stride) * scale;
  transpose(v);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) store(to + i * to_stride, v[i]);
}

// Per-channel rows of n, as kernels hold them: [vector][padded(n)][lane], whole squares of lanes.
SS_INLINE int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

SS_INLINE void copy_some(const float* from, int64_t left, float* to) {
  if (left >= kLanes)
    memcpy(to, from, kLanes * sizeof(float));
  else if (left == kLanes / 2)  // 8 states in AVX-512
    memcpy(to, from, kLanes / 2 * sizeof(float));
  else
    for (int64_t i = 0; i < left; i++) to[i] = from[i];
}

inline void gather(const float* from, int64_t stride, int64_t channels, int64_t n, float scale,
                   float* to) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t j = 0; j < n; j += kLanes, to += kLanes * kLanes) {
      const float* square = from + c * stride + j;
      if (channels - c >= kLanes && n - j >= kLanes) {
        transpose(square, stride, scale, to, kLanes);
      } else {
        float part[kLanes * kLanes] = {};
        for (int64_t i = 0; i < kLanes && i < channels - c; i++)
          copy_some(square + i * stride, n - j, part + i * kLanes);
        transpose(part, kLanes, scale, to, kLanes);
      }
    }
}

// The way back, to dense rows.
inline void scatter(const float* from, int64_t channels, int64_t n, float* to) {
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int64_t j = 0; j < n; j += kLanes, from += kLanes * kLanes) {
      float* square = to + c * n + j;
      if (channels - c >= kLanes && n - j >= kLanes) {
        transpose(from, kLanes, 1, square, n);
      } else {
        float part[kLanes * kLanes];
        transpose(from, kLanes, 1, part, kLanes);
        for (int64_t i = 0; i < kLanes && i < channels - c; i++)
          copy_some(part + i * kLanes, n - j, square + i * n);
      }
    }
}

}  // namespace ss::SS_LEVEL
