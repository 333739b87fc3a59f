// cuFFT, found and loaded at run time: neither header nor library is needed to build. Without it
// there is no fft_conv on this device.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <memory>

namespace ss::cuda {

// The least size that is at least `least` and fast: 4, 5, 6 or 7 times a power of two, 32 or more.
int64_t fft_size(int64_t least);

class Fft {
 public:
  explicit Fft(int device);
  ~Fft();
  Fft(const Fft&) = delete;

  // Looks for the library, once. False: there is none that works. From any thread.
  bool find() noexcept;
  // Writes which library is used, or why none is, ended by 0. From any thread.
  void report(char* text, size_t size) const noexcept;

  // What follows is for the thread that feeds the stream; legal during a capture. Plans are kept:
  // captured graphs use their tables.
  struct Plan {
    int handle = 0;
    int64_t workspace = 0;  // bytes
    bool usable = false;
  };
  // Complex transforms of `rows` dense rows of `size` numbers, in place.
  const Plan& plan(int64_t size, int64_t rows) noexcept;
  // False: the library refused. There and back gives `size` times what was given.
  enum Way : int { forward = -1, back = 1 };
  bool run(cudaStream_t stream, const Plan& plan, Way way, float2* rows, void* workspace) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ss::cuda
