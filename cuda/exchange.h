// Memory for the words that blocks of one kernel tell each other (device/exchange.cuh), zero at first, the round
// of no word, and for how far they are (device/grid_layer.cuh), zero too; and for what device/step_shares.cuh leaves
// to the kernel after it. Of one queue, since kernels that use it must not run at the same time.
#pragma once
#include <cuda_runtime.h>

#include "device/exchange.cuh"

namespace ss::cuda {

class Exchange {
 public:
  static constexpr int kWords = 20480;
  static constexpr int kTold = 4096;
  static constexpr int kShares = 4 * 256 * 192;  // f32

  // For the device that is current.
  Exchange() {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major < 9) return;
    constexpr size_t kZero = kWords * sizeof(Word) + kTold * sizeof(uint32_t);
    if (cudaMalloc(&memory_, kZero + kShares * sizeof(float)) || cudaMemset(memory_, 0, kZero)) {
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
  uint32_t* told() const { return memory_ ? reinterpret_cast<uint32_t*>(words() + kWords) : nullptr; }
  float* shares() const { return memory_ ? reinterpret_cast<float*>(told() + kTold) : nullptr; }

 private:
  void* memory_ = nullptr;
};

}  // namespace ss::cuda
