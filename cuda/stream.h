// What a CUDA kernel's host function is given, and the list that KERNEL adds it to.
#pragma once
#include <cuda_runtime.h>

#include "../native/kernel.h"
#include "blas.h"
#include "exchange.h"
#include "faults.h"
#include "fft.h"

namespace ss {

// In a recorded graph: the calls that come right after this one. A kernel that does the first of them
// at once says how many it took.
struct Following {
  struct Call {
    const Kernel* kernel;
    const Arg* args;
  };
  const Call* calls = nullptr;
  int count = 0, taken = 0;
};

struct Stream {
  cudaStream_t handle;
  const char* op;  // the name of the kernel that is called
  cuda::Faults* faults;
  cuda::Blas* blas;
  cuda::Fft* fft;
  cuda::Exchange* exchange;
  Following* following;

  // Where threads report a value that is out of range: see Faults::at.
  cuda::Fault* fault(const char* format) const { return faults->at(op, format); }
};

}  // namespace ss

namespace ss::cuda {
extern const Kernel* kernels;
}
