// Faults of one device: a kernel's launch asks for a place, its threads report there, and what a read
// hands over to the host along with its bytes is told by that read.
#pragma once
#include <stddef.h>

#include "../native/backend.h"
#include "device/fault.cuh"

namespace ss::cuda {

class Faults {
 public:
  static constexpr int kMost = 64;  // more than all kernels have

  Faults();  // with the device current
  ~Faults();
  Faults(const Faults&) = delete;

  // The place for `format`, a literal that may print the index (%lld), the value (%d) and the limit
  // (%lld), in this order. The same for every launch, so that captured graphs keep it. Never null.
  Fault* at(const char* op, const char* format);
  Fault* memory() const { return memory_; }  // kMost of them, on the device
  // What a copy of them reports, if anything, as "<op>: <message>". From any thread: those that the
  // copy can hold had their places before it was made.
  void describe(const Fault* seen, Status& status) const;

 private:
  struct Site {
    const char* op;
    const char* format;
  };
  Site sites_[kMost] = {};
  int count_ = 0;
  Fault* memory_ = nullptr;
};

}  // namespace ss::cuda
