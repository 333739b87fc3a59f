// Random numbers from a counter and a key: the same for a place whoever asks, and in any order.
#pragma once
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

// In [0, 1), from 53 random bits of Philox 4x32-10 (Salmon et al. 2011).
SS_INLINE double uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  uint32_t c[4] = {position, 0, 0, 0}, key[2] = {seed_low, seed_high};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    memcpy(c, next, sizeof(c));
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

}  // namespace
}  // namespace ss::SS_LEVEL
