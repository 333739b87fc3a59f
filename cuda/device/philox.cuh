// Philox 4x32-10 (Salmon et al. 2011): a counter and a key in, random bits out. The same as the
// CPU's.
#pragma once
#include <stdint.h>

namespace ss::cuda {

// 53 random bits above 11 that are 0: the numerator of a number in [0, 1), over 2^64.
__device__ inline uint64_t uniform_bits(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high2 = __umulhi(0xCD9E8D57u, c2), low2 = 0xCD9E8D57u * c2;
    c0 = high2 ^ c1 ^ seed_low;
    c1 = low2;
    c2 = high0 ^ c3 ^ seed_high;
    c3 = low0;
    seed_low += 0x9E3779B9u;
    seed_high += 0xBB67AE85u;
  }
  return (uint64_t{c0} << 32 | c1) & ~uint64_t{0x7ff};
}

// In [0, 1).
__device__ inline double uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  return static_cast<double>(uniform_bits(seed_low, seed_high, position) >> 11) * 0x1p-53;
}

}  // namespace ss::cuda
