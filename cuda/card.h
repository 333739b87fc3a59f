// What launches are sized by.
#pragma once
#include <cuda_runtime.h>

namespace ss::cuda {

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace ss::cuda
