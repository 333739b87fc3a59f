// Packed sequences and the rows of a state pool that they own, as ops with a state take them.
#pragma once
#include "stream.h"

namespace ss {

struct Sequences {
  const int32_t* offsets;  // [count + 1]
  const int32_t* slots;    // [count], or null: sequence i owns row i
  int64_t count, pool;     // pool: rows of state, 0 where there is none

  SS_INLINE int64_t begin(int64_t i) const { return offsets[i]; }
  SS_INLINE int64_t end(int64_t i) const { return offsets[i + 1]; }
  // Negative: starts from zero and leaves nothing.
  SS_INLINE int64_t slot(int64_t i) const {
    if (pool == 0) return -1;
    return slots ? slots[i] : i;
  }
  // Offsets and slots are data, so that only the kernel can refuse them. False: s has failed.
  SS_INLINE bool check(Stream& s, int64_t tokens) const {
    for (int64_t i = 0; i < count; i++) {
      if (begin(i) > end(i) || (i == 0 && begin(0) != 0)) {
        s.fail("offsets[%d] is %d, expected offsets that start at 0 and never fall", int(i),
               int(begin(i)));
        return false;
      }
      if (slot(i) >= pool && pool > 0) {
        s.fail("slots[%d] is %d, expected less than %d, the rows of state", int(i), int(slot(i)),
               int(pool));
        return false;
      }
    }
    if ((count > 0 ? end(count - 1) : 0) != tokens) {
      s.fail("offsets end at %d, expected %d, the tokens given", int(count > 0 ? end(count - 1) : 0),
             int(tokens));
      return false;
    }
    return true;
  }
};

SS_INLINE Sequences sequences(In offsets, Opt slots, OptInOut state) {
  return {offsets.data<int32_t>(), slots ? slots.data<int32_t>() : nullptr, offsets.size(0) - 1,
          state ? state.size(0) : 0};
}

}  // namespace ss
