// States kept in 16 bits. Rounded to the nearest, a slow state would stop: h exp(dt A) rounds back to
// h. So they are rounded up or down at random, with the probabilities that make the mean right. The
// random bits are a hash of what 16 or 32 neighbouring channels have become, and so the same on every run; no
// generator has a state. A channel by itself would not do: under a constant input it could come to rest.
#pragma once
#include <stdint.h>

#include "pack.cuh"

namespace ss::cuda {

// MurmurHash3's finalizer.
__device__ __forceinline__ uint32_t mixed(uint32_t x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

// Random bits for four pairs of a channel's states, from the outputs that a whole warp's channels have:
// called by all its lanes, of which each channel has two. All zero where the channel's own is not
// finite: then nothing is rounded away from zero, and NaN stays NaN.
struct Dice {
  uint32_t hash;
  __device__ __forceinline__ static Dice of(float y, int channel, int part) {
    const bool finite = fabsf(y) < __uint_as_float(0x7f800000u);
    const uint32_t own = __float_as_uint(y);
    const uint32_t all = __reduce_xor_sync(0xffffffffu, part == 0 ? own : own * 0x9e3779b1u);
    return {finite ? mixed(all + static_cast<uint32_t>(2 * channel + part)) : 0u};
  }
  // The same where a lane has a whole channel: 8 neighbouring lanes have neighbouring ones, of one sequence.
  __device__ __forceinline__ static Dice of_eight(float y, int channel) {
    const bool finite = fabsf(y) < __uint_as_float(0x7f800000u);
    uint32_t all = __float_as_uint(y) ^ __float_as_uint(y) * 0x9e3779b1u;
#pragma unroll
    for (int i = 1; i < 8; i *= 2) all ^= __shfl_xor_sync(0xffffffffu, all, i);
    return {finite ? mixed(all + static_cast<uint32_t>(channel)) : 0u};
  }
  // Of a mixed hash's multiples by odd numbers each is uniform.
  __device__ __forceinline__ uint32_t pair(int i) const { return hash * (2u * i * 0x2c1b3c6du + 1u); }
};

// Two states as one word, the first in its lower half, each rounded to one of its two neighbours in S:
// its distance from the one nearer to zero, in their own unit, is the share of its 16 random bits that
// round away from it. NaN wants zeros for bits. From the largest bf16 on it may become infinite.
__device__ __forceinline__ uint32_t round_pair(float low, float high, uint32_t random,
                                               __nv_bfloat16) {
  const uint32_t a = __float_as_uint(low) + (random & 0xffffu);
  const uint32_t b = __float_as_uint(high) + (random >> 16);
  return __byte_perm(a, b, 0x7632);
}
__device__ __forceinline__ float add_share(float x, uint32_t random) {
  // One unit of f16 at x, or of its subnormals, times a share that f32 adds without rounding.
  const float power = __uint_as_float(__float_as_uint(x) & 0x7f800000u);
  const float unit = fmaxf(power * 0x1p-10f, 0x1p-24f);
  const float share = __uint_as_float(0x3f800000u | (random & 0xfff8u) << 7) - 1.0f;
  return fmaf(copysignf(unit, x), share, x);
}
// Cut off, so that nothing finite becomes infinite.
__device__ __forceinline__ uint32_t round_pair(float low, float high, uint32_t random, __half) {
  const float a = add_share(low, random), b = add_share(high, random >> 16);
  return static_cast<uint32_t>(__half_as_ushort(__float2half_rz(a))) |
         static_cast<uint32_t>(__half_as_ushort(__float2half_rz(b))) << 16;
}
template <class S>
__device__ __forceinline__ uint32_t round_pair(float low, float high, uint32_t random) {
  return round_pair(low, high, random, S{});
}

}  // namespace ss::cuda
