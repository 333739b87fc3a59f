// Faults of one device: a kernel's launch asks for a place, its threads report there, a read takes.
#pragma once
#include <stddef.h>

#include "device/fault.cuh"

namespace ss::cuda {

class Faults {
 public:
  Faults();  // with the device current
  ~Faults();
  Faults(const Faults&) = delete;

  // The place for `format`, a literal that may print the index (%lld), the value (%d) and the limit
  // (%lld), in this order. The same for every launch, so that captured graphs keep it. Never null.
  Fault* at(const char* op, const char* format);
  // Whether anything was reported, as "<op>: <message>"; forgets it. The stream must be idle.
  bool take(char* text, size_t size);

 private:
  static constexpr int kMost = 64;  // more than all kernels have
  struct Site {
    const char* op;
    const char* format;
  };
  Site sites_[kMost] = {};
  int count_ = 0;
  Fault* memory_ = nullptr;  // pinned: the device writes it in place
};

}  // namespace ss::cuda
