// Memory for one op's own use that all its threads share; a thread's own comes from scratch().
#pragma once
#include <stdlib.h>

#include "stream.h"

namespace ss {

class Room {
 public:
  // Empty, and `s` failed, when there is no memory.
  SS_INLINE Room(Stream& s, int64_t floats)
      : floats_(static_cast<float*>(
            aligned_alloc(64, (static_cast<size_t>(floats) * sizeof(float) + 127) / 64 * 64))) {
    if (!floats_) s.fail("out of memory: %lld bytes were asked for", static_cast<long long>(4 * floats));
  }
  SS_INLINE ~Room() { free(floats_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  SS_INLINE explicit operator bool() const { return floats_ != nullptr; }
  SS_INLINE float* floats() const { return floats_; }

 private:
  float* floats_;
};

}  // namespace ss
