// N neighbouring elements moved as one access of up to 16 bytes, seen as f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ss::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(float& to, float x) { to = x; }
__device__ inline void from_float(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }
__device__ inline void from_float(__half& to, float x) { to = __float2half_rn(x); }

template <class T, int N>
struct alignas(sizeof(T) * N) Raw {
  T item[N];
};

template <int N>
struct Pack {
  float item[N];

  // p is aligned to N elements.
  template <class T>
  __device__ static Pack load(const T* p) {
    const Raw<T, N> raw = *reinterpret_cast<const Raw<T, N>*>(p);
    Pack pack;
#pragma unroll
    for (int k = 0; k < N; k++) pack.item[k] = to_float(raw.item[k]);
    return pack;
  }
  template <class T>
  __device__ void store(T* p) const {
    Raw<T, N> raw;
#pragma unroll
    for (int k = 0; k < N; k++) from_float(raw.item[k], item[k]);
    *reinterpret_cast<Raw<T, N>*>(p) = raw;
  }
};

}  // namespace ss::cuda
