// Device memory for one op's own use, in the stream's order; legal while a graph is captured.
#pragma once
#include <cuda_runtime.h>

#include "stream.h"

namespace ss::cuda {

class Scratch {
 public:
  // Once for each device, before anything is captured. By itself the pool gives all memory back
  // whenever the stream runs dry, and asks for it again next time.
  static cudaError_t prepare(int device) {
    cudaMemPool_t pool = nullptr;
    uint64_t kept = 64 << 20;
    const cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, device);
    return error ? error : cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  }

  // Null when there is no memory: the op must then do without, or launch nothing; the queue reports it.
  Scratch(const Stream& s, int64_t bytes) : stream_(s.handle) {
    if (cudaMallocAsync(&memory_, static_cast<size_t>(bytes), stream_) != cudaSuccess) memory_ = nullptr;
  }
  ~Scratch() {
    if (memory_) cudaFreeAsync(memory_, stream_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  cudaStream_t stream_;
  void* memory_ = nullptr;
};

}  // namespace ss::cuda
