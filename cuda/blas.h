// cuBLASLt, found and loaded at run time: neither header nor library is needed to build, and
// without it matmul has kernels of its own.
#pragma once
#include <cuda_runtime.h>

#include <memory>

#include "matmul.h"

namespace ss::cuda {

// One stream's: its calls follow one another and share a workspace.
class Blas {
 public:
  Blas();
  ~Blas();
  Blas(const Blas&) = delete;

  // y = x W^T + bias + addend, each of x and W as it lies or turned, where x and W have one type, and y is
  // f32 if there is a bias. Looks for the library at the first call, during a capture too. False: nothing was
  // done, since there is no library, or it has no kernel for this product.
  bool multiply(cudaStream_t stream, const Product& p) noexcept;
  // kRoom bytes for sums on their way to y, or null. The stream's, as the workspace is.
  static constexpr size_t kRoom = size_t{32} << 20;
  void* room() noexcept;
  // Writes which library is used, or why none is, ended by 0. From any thread.
  void report(char* text, size_t size) const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ss::cuda
