// Floats as integers in the same order: NaN before all, -0 and 0 alike.
#pragma once
#include <stdint.h>

namespace ss::cuda {

__device__ inline uint32_t key_of(float x) {
  if (x != x) return 0;
  const uint32_t u = __float_as_uint(x + 0.0f);
  return u >> 31 ? ~u : u | 0x80000000u;
}

}  // namespace ss::cuda
