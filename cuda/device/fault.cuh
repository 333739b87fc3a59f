// What a kernel finds wrong with a value that only the device sees, such as an id out of range.
#pragma once
#include <stdint.h>

namespace ss::cuda {

constexpr unsigned long long kNoFault = ~0ull;

// Lies on the device; the next read takes it along.
struct Fault {
  unsigned long long place;  // index << 32 | value; of several the smallest stays
  long long limit;           // what the value was held against

  __device__ void report(int64_t index, int32_t value, int64_t held_against) {
    const unsigned long long found =
        static_cast<unsigned long long>(index) << 32 | static_cast<uint32_t>(value);
    // Threads of one launch agree on the limit, and launches follow one another.
    if (found < atomicMin(&place, found)) limit = held_against;
  }
};

}  // namespace ss::cuda
