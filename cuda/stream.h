// What a CUDA kernel's host function is given, and the list that KERNEL adds it to.
#pragma once
#include <cuda_runtime.h>

#include "../native/kernel.h"

namespace ss {

struct Stream {
  cudaStream_t handle;
};

}  // namespace ss

namespace ss::cuda {
extern const Kernel* kernels;
}
