// Packed sequences as an op's arguments give them.
#pragma once
#include "device/sequences.cuh"
#include "stream.h"

namespace ss::cuda {

inline Sequences sequences(const Stream& s, In offsets, Opt slots, OptInOut state, int64_t tokens) {
  return {offsets.data<int32_t>(),
          slots ? slots.data<int32_t>() : nullptr,
          offsets.size(0) - 1,
          state ? state.size(0) : 0,
          tokens,
          s.fault("offsets[%lld] is %d, expected offsets that start at 0 and never fall"),
          s.fault("offsets[%lld] is %d, expected %lld, the tokens given"),
          s.fault("slots[%lld] is %d, expected less than %lld, the rows of state")};
}

}  // namespace ss::cuda
