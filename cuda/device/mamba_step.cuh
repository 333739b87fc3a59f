// What the kernels of mamba_step share: their arguments, the convolution of one token, and the
// products with weights that lie in memory. For 16 states, 4 taps, and rows of 16 bytes.
#pragma once
#include <stdint.h>

#include "activation.cuh"
#include "cluster.cuh"
#include "dependent.cuh"
#include "fault.cuh"
#include "mma.cuh"
#include "pack.cuh"

namespace ss::cuda {

constexpr int kStates = 16, kTaps = 4;
constexpr int kUnit = 32;  // columns of 8 weights' rows that a warp reads as one access

template <class T>
struct Step {
  const T* xz;  // [b, 2 d]
  const float *conv_weight, *conv_bias;  // [d, 4], [d] or null
  T* conv_state;      // [p, d, 3]
  const T *x_proj, *dt_weight;  // [k, d], [d, r]
  const float *dt_bias, *A, *D;  // [d], [d, 16], [d]
  void* scan_state;              // [p, d, 16], of the type that a kernel is told
  const int32_t *offsets, *slots;
  T *y, *u, *dbc;  // [b, d], [b, d], [b, k]
  int64_t xz_stride, conv_state_stride, x_proj_stride, scan_state_stride;
  int64_t y_stride, u_stride, dbc_stride, pool;
  int count, d, r, k;
  int slice;  // channels of a block of a cluster; a multiple of kUnit
  int state_bytes;  // of one of scan_state
  Fault *bad_offset, *bad_slot;

  template <class S>
  __device__ S* states(int64_t slot) const {
    return static_cast<S*>(scan_state) + slot * scan_state_stride;
  }
  // Negative: starts from zero and leaves nothing.
  __device__ int64_t slot(int i) const {
    const int32_t row = slots[i];
    return row < pool ? row : -1;
  }
  // The same before wait_for_previous(), and not to be relied on: for prefetches alone.
  __device__ int64_t likely_slot(int i) const {
    int32_t row;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(row) : "l"(slots + i));
    return row < pool ? row : -1;
  }
  __device__ void check() const {
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i <= count; i += blockDim.x) {
      if (offsets[i] != i) bad_offset->report(i, offsets[i], i);
      if (i < count && slots[i] >= pool) bad_slot->report(i, slots[i], pool);
    }
  }
};

// Asks for `rows` rows of `bytes` each, all threads together; both in steps of 16 bytes.
__device__ inline void prefetch_rows(const void* p, int64_t stride, int rows, int bytes) {
  for (int i = threadIdx.x; i < rows; i += blockDim.x)
    prefetch_weights(static_cast<const char*>(p) + i * stride, bytes);
}
__device__ inline void prefetch_span(const void* p, int64_t bytes) {
  constexpr int kSpan = 512;  // of a thread
  for (int64_t i = threadIdx.x * kSpan; i < bytes; i += blockDim.x * kSpan)
    prefetch_weights(static_cast<const char*>(p) + i,
                     static_cast<uint32_t>(bytes - i < kSpan ? bytes - i : kSpan));
}

// The convolution of V channels' one token with what their state holds, which moves on.
template <class T, int V>
struct Tap {
  Raw<T, V> x, past[kTaps - 1];  // past: V channels of 3 inputs, oldest first

  __device__ T& at(int channel, int i) {
    const int item = channel * (kTaps - 1) + i;
    return past[item / V].item[item % V];
  }
  __device__ void load(const T* input, const T* state) {
    x = *reinterpret_cast<const Raw<T, V>*>(input);
#pragma unroll
    for (int i = 0; i < kTaps - 1; i++)
      past[i] = state ? reinterpret_cast<const Raw<T, V>*>(state)[i] : Raw<T, V>{};
  }
  __device__ Raw<T, V> convolve(const float4 (&weight)[V], const float (&bias)[V]) {
    Raw<T, V> u;
#pragma unroll
    for (int k = 0; k < V; k++) {
      float sum = fmaf(weight[k].x, to_float(at(k, 0)), bias[k]);
      sum = fmaf(weight[k].y, to_float(at(k, 1)), sum);
      sum = fmaf(weight[k].z, to_float(at(k, 2)), sum);
      from_float(u.item[k], silu(fmaf(weight[k].w, to_float(x.item[k]), sum)));
    }
    return u;
  }
  __device__ void store(T* state) {
#pragma unroll
    for (int k = 0; k < V; k++) {
      at(k, 0) = at(k, 1);
      at(k, 1) = at(k, 2);
      at(k, 2) = x.item[k];
    }
#pragma unroll
    for (int i = 0; i < kTaps - 1; i++) reinterpret_cast<Raw<T, V>*>(state)[i] = past[i];
  }
};

// Two channels' one token and what their state holds, as it lies in memory, so that many may be on their way to
// registers: written out, since the compiler would take each apart, and so wait for it, before it asks for the next.
template <class T>
struct PairTap {
  uint32_t x, past[kTaps - 1];

  // Zeros for what is not there; its address is not read.
  __device__ __forceinline__ void load(const T* input, bool there, const T* state, bool kept) {
    asm volatile(
        "{.reg .pred p, q; setp.ne.s32 p, %6, 0; setp.ne.s32 q, %7, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
        "@p ld.global.u32 %0, [%4];\n"
        "@q ld.global.u32 %1, [%5]; @q ld.global.u32 %2, [%5+4]; @q ld.global.u32 %3, [%5+8];}"
        : "=&r"(x), "=&r"(past[0]), "=&r"(past[1]), "=&r"(past[2])
        : "l"(input), "l"(state), "r"(static_cast<int>(there)), "r"(static_cast<int>(kept))
        : "memory");
  }
  __device__ __forceinline__ Tap<T, 2> open() const {
    Tap<T, 2> tap;
    tap.x = *reinterpret_cast<const Raw<T, 2>*>(&x);
#pragma unroll
    for (int i = 0; i < kTaps - 1; i++) tap.past[i] = *reinterpret_cast<const Raw<T, 2>*>(&past[i]);
    return tap;
  }
};

// U units of a row, 8 columns of each a lane; zeros beyond `columns`. Written out, since the
// compiler would move loads down to where they are used, and wait for each.
template <int U, class T>
__device__ __forceinline__ void load_units(uint4 (&v)[U], const T* row, int begin, int columns) {
#pragma unroll
  for (int i = 0; i < U; i++) {
    const int at = begin + i * kUnit + static_cast<int>(threadIdx.x) % 4 * 8;
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 "
        "%3, 0;\n"
        "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(v[i].x), "=&r"(v[i].y), "=&r"(v[i].z), "=&r"(v[i].w)
        : "l"(row + at), "r"(static_cast<int>(at < columns))
        : "memory");
  }
}

// c[16, 8] += a b^T over one unit, of which a lane has 8 columns of rows g and g + 8 of a, and of
// row g of b.
template <class T>
__device__ __forceinline__ void multiply_unit(float (&c)[4], uint4 low, uint4 high, uint4 b, T) {
  mma(c, low.x, high.x, low.y, high.y, b.x, b.y, T{});
  mma(c, low.z, high.z, low.w, high.w, b.z, b.w, T{});
}

// Adds what one token does to 4 states of a channel, and returns their share of y.
__device__ __forceinline__ float advance(float4& h, float4 A, float dt, float dtu, float4 B,
                                         float4 C) {
  h.x = fmaf(exp2_approx(dt * (A.x * kLog2e)), h.x, dtu * B.x);
  h.y = fmaf(exp2_approx(dt * (A.y * kLog2e)), h.y, dtu * B.y);
  h.z = fmaf(exp2_approx(dt * (A.z * kLog2e)), h.z, dtu * B.z);
  h.w = fmaf(exp2_approx(dt * (A.w * kLog2e)), h.w, dtu * B.w);
  float y = fmaf(h.w, C.w, fmaf(h.z, C.z, fmaf(h.y, C.y, h.x * C.x)));
  y += __shfl_xor_sync(0xffffffffu, y, 2);
  return y + __shfl_xor_sync(0xffffffffu, y, 1);
}

__device__ __forceinline__ float rounded(float x, auto type) {
  from_float(type, x);
  return to_float(type);
}

}  // namespace ss::cuda
