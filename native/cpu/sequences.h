// Packed sequences, the rows of a state pool that they own, and how ops along them split channels.
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
    const int64_t last = count > 0 ? end(count - 1) : 0;
    if (last != tokens) {
      s.fail("offsets end at %d, expected %d, the tokens given", int(last), int(tokens));
      return false;
    }
    return true;
  }
};

// Channels of the blocks that threads take through a sequence, when there are `count` sequences of
// `channels`. Rows are far apart: pieces of 32 floats of them come from memory at 4 GB/s where
// pieces of 128 and more come at 15. So blocks are wide, but each thread has four.
SS_INLINE int64_t block_width(int64_t channels, int64_t count, int threads) {
  constexpr int64_t kWidest = 256, kNarrowest = 32;
  const int64_t share = channels * count / (4 * threads) / kNarrowest * kNarrowest;
  return share < kNarrowest ? kNarrowest : share > kWidest ? kWidest : share;
}

SS_INLINE Sequences sequences(In offsets, Opt slots, OptInOut state) {
  return {offsets.data<int32_t>(), slots ? slots.data<int32_t>() : nullptr, offsets.size(0) - 1,
          state ? state.size(0) : 0};
}

}  // namespace ss
