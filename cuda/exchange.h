// Memory for the words that blocks of one kernel tell each other (device/exchange.cuh), zero at first, the round
// of no word; and for what device/step_shares.cuh leaves to the kernel after it. Of one queue, since kernels
// that use it must not run at the same time.
#pragma once
#include <cuda_runtime.h>

#include "device/exchange.cuh"

namespace ss::cuda {

class Exchange {
 public:
  static constexpr int kWords = 20480;
  static constexpr int kShares = 4 * 256 * 192;  // f32

  // For the device that is current.
  Exchange() {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major < 9) return;
    if (cudaMalloc(&memory_, kWords * sizeof(Word) + kShares * sizeof(float)) ||
        cudaMemset(memory_, 0, kWords * sizeof(Word))) {
      cudaGetLastError();
      cudaFree(memory_);
      memory_ = nullptr;
    }
  }
  ~Exchange() { cudaFree(memory_); }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Null where there are no such kernels, or there was no memory.
  Word* words() const { return static_cast<Word*>(memory_); }
  float* shares() const { return memory_ ? reinterpret_cast<float*>(words() + kWords) : nullptr; }

 private:
  void* memory_ = nullptr;
};

}  // namespace ss::cuda
