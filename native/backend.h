// A device as the addon sees it: memory and one queue. The CPU device implements this inside the
// addon, the CUDA module in a library of its own; nothing throws across this line.
#pragma once
#include <stddef.h>

#include "kernel.h"

namespace ss {

// Raised whenever this file, tensor.h or kernel.h changes what crosses the line.
constexpr int kAbi = 3;

struct Status {
  enum Code : int32_t { ok = 0, out_of_memory, failed, lost };
  Code code = ok;
  char text[252] = {};
};

// Called once, from any thread, when the queue has got that far. `value` belongs to stamp().
struct Done {
  void (*call)(void* context, const Status& status, double value);
  void* context;
};

struct DeviceInfo {
  char name[128];    // the processor's or card's own name
  char detail[128];  // instruction level, or compute capability and driver
  int64_t memory;    // bytes in all
  int32_t units;     // threads, or multiprocessors
  char blas[1024];   // the library for large matmuls, or why there is none; empty where none is used
};

struct MemoryUse {
  int64_t used, cached, peak, limit;  // bytes; limit 0: none was set
};

// All calls but the destructor return at once: work is queued, in order. Memory follows the queue:
// what is freed may be handed out again at once, to later work.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceInfo info() noexcept = 0;
  // Looks for the library of FFTs; not before it is asked, since it is large. Whether there is one that
  // works, and which, or why none is used.
  virtual bool find_fft(char* text, size_t size) noexcept = 0;
  virtual const Kernel* kernels() noexcept = 0;  // a list; a kernel's id is its place in it

  virtual Status alloc(size_t bytes, void** out) noexcept = 0;
  virtual void free(void* memory) noexcept = 0;
  virtual MemoryUse memory() noexcept = 0;
  virtual void set_memory_limit(int64_t bytes) noexcept = 0;
  virtual void trim() noexcept = 0;  // gives cached memory back to the system

  virtual Status run(int kernel, const Arg* args, int count) noexcept = 0;
  virtual Status write(void* to, const void* from, size_t bytes, Done done) noexcept = 0;
  // Reports what failed since the last read, if anything did.
  virtual Status read(void* to, const void* from, size_t bytes, Done done) noexcept = 0;
  virtual Status stamp(Done done) noexcept = 0;  // the device's clock at this point, milliseconds

  // Between these two, run() records instead of running, and memory that is handed out belongs to
  // the graph until it is dropped.
  virtual Status begin_capture() noexcept = 0;
  virtual Status end_capture(void** graph) noexcept = 0;
  virtual Status replay(void* graph) noexcept = 0;
  virtual void drop(void* graph) noexcept = 0;
};

// What a device module exports under the name `selective_scan_open`: a device, or why not.
using OpenModule = const char* (*)(int abi, int index, Backend** out);

}  // namespace ss
