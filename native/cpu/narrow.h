// States kept in 16 bits. Rounded to the nearest, a slow state would stop: h exp(dt A) rounds back to
// h. So they are rounded up or down at random, with the probabilities that make the mean right. The
// random bits are a hash of the states of 32 neighbouring channels, and so the same on every run. A
// channel by itself would not do: under a constant input it could come to rest.
#pragma once
#include "simd.h"

namespace ss::SS_LEVEL {

SS_INLINE uint32_t mixed(uint32_t x) {  // MurmurHash3's finalizer
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}
SS_INLINE VecU mixed(VecU x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

// To one of the two neighbours in S: the distance from the one nearer to zero, in their own unit, is
// the share of `random` (16 bits) that rounds away from it. What is not finite stays so, and what
// is stays so. The result is exact in S.
SS_INLINE Vec round_at_random(Vec x, VecU random, bf16) {
  const VecU u = bits<VecU>(x);
  const VecU up = (u & 0x7fff0000u) >= 0x7f7f0000u ? VecU{} : random;  // the largest, and beyond
  return bits<Vec>(x == x ? (u + up) & 0xffff0000u : u);
}
SS_INLINE Vec round_at_random(Vec x, VecU random, f16) {
  const VecU u = bits<VecU>(x), sign = u & 0x80000000u, size = u & 0x7fffffffu;
  const Vec share = __builtin_convertvector(bits<VecI>(random >> 3), Vec);
  const VecU in_units = (size + (random >> 3)) & ~0x1fffu;  // 13 bits are cut off
  // Below 2^-14 the unit is 2^-24. The sum is below 2^11, so that it may become an integer.
  const Vec small = bits<Vec>(size < 0x38800000u ? size : VecU{}) * splat(0x1p24f) + share * 0x1p-13f;
  const Vec whole = __builtin_convertvector(__builtin_convertvector(small, VecI), Vec) * splat(0x1p-24f);
  VecU out = size < 0x38800000u ? bits<VecU>(whole) : in_units;
  out = out >= 0x477fe000u ? VecU{} + 0x477fe000u : out;  // 65,504
  return bits<Vec>((size < 0x7f800000u ? out : size) | sign);
}

// `count` states of S as f32.
template <class S>
SS_INLINE void widen(const S* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes)
    store_some(to + i, load_some(from + i, count - i), count - i);
}

// Rows of n states to S; blocks of channels begin at multiples of 32 of their group's.
template <class S>
SS_INLINE void narrow(const float* from, int64_t channels, int64_t n, S* to) {
  constexpr int64_t kNeighbours = 32;
  VecU lane;
  for (int i = 0; i < kLanes; i++) lane[i] = static_cast<uint32_t>(i);
  uint32_t all = 0;
  for (int64_t c = 0; c < channels; c++, from += n, to += n) {
    if (c % kNeighbours == 0) {
      const int64_t left = channels - c, together = left < kNeighbours ? left : kNeighbours;
      all = 0;
      for (int64_t i = 0; i < together; i++) {
        uint32_t own = 0;
        for (int64_t j = 0; j < n; j++) own = (own ^ bits<uint32_t>(from[i * n + j])) * 0x9e3779b1u;
        all ^= own;
      }
    }
    const uint32_t seed = mixed(all + static_cast<uint32_t>(c % kNeighbours));
    for (int64_t i = 0; i < n; i += kLanes) {
      const VecU random = mixed(lane + (seed + static_cast<uint32_t>(i))) & 0xffffu;
      store_some(to + i, round_at_random(load_some(from + i, n - i), random, S{}), n - i);
    }
  }
}

}  // namespace ss::SS_LEVEL
