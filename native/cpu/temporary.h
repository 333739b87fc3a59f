// Memory of one call, for what an op made of other ops keeps between them: their own scratch memory
// belongs to them.
#pragma once
#include <stdlib.h>

#include "stream.h"

namespace ss::SS_LEVEL {

class Temporary {
 public:
  SS_INLINE Temporary(Stream& s, int64_t bytes) : memory_(malloc(static_cast<size_t>(bytes) + 64)) {
    if (!memory_) s.fail("no memory for %lld bytes between two of its steps", static_cast<long long>(bytes));
  }
  SS_INLINE ~Temporary() { free(memory_); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  SS_INLINE explicit operator bool() const { return memory_ != nullptr; }
  // `rows` x `columns` of it, from a byte on.
  SS_INLINE View matrix(int64_t rows, int64_t columns, DType type, int64_t from = 0) const {
    return {static_cast<char*>(memory_) + from, {rows, columns}, columns, 2, type};
  }

 private:
  void* memory_;
};

}  // namespace ss::SS_LEVEL
