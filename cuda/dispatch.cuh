// From the DType that a View carries to the element type that a kernel is compiled for.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../native/tensor.h"

namespace ss::cuda {

// Calls f with a value of the element type that `t` names.
template <class F>
void with_float(DType t, F&& f) {
  if (t == DType::f32)
    f(float{});
  else if (t == DType::bf16)
    f(__nv_bfloat16{});
  else
    f(__half{});
}

// Whether every row of a tensor of T can be accessed `n` elements at a time.
template <class T, class P>
bool packs(P tensor, int n) {
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(tensor.template data<T>()) % bytes == 0 &&
         (tensor.rank() == 1 || tensor.stride() % n == 0);
}

}  // namespace ss::cuda
