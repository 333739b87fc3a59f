// What one matmul is asked for: y = x W^T + bias + addend, rows strided, pointers of the types that x and y
// say.
#pragma once
#include "../native/tensor.h"

namespace ss::cuda {

struct Product {
  const void* x;      // [m, k]
  const void* w;      // [n, k]
  const float* bias;  // [n], or null
  void* y;            // [m, n]
  int64_t m, n, k;
  int64_t x_stride, w_stride, y_stride;
  DType x_type, w_type, y_type;
  // Stored the other way round: x as [k, m], w as [k, n].
  bool x_turned = false, w_turned = false;
  // [m, n] of y's type, which y is the sum with; or null.
  const void* addend = nullptr;
  int64_t addend_stride = 0;
};

}  // namespace ss::cuda
