// What a CUDA kernel's host function is given, and the list that KERNEL adds it to.
#pragma once
#include <cuda_runtime.h>

#include "../native/kernel.h"
#include "blas.h"
#include "faults.h"
#include "fft.h"

namespace ss {

struct Stream {
  cudaStream_t handle;
  const char* op;  // the name of the kernel that is called
  cuda::Faults* faults;
  cuda::Blas* blas;
  cuda::Fft* fft;

  // Where threads report a value that is out of range: see Faults::at.
  cuda::Fault* fault(const char* format) const { return faults->at(op, format); }
};

}  // namespace ss

namespace ss::cuda {
extern const Kernel* kernels;
}
