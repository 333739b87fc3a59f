// matmul of up to 16 rows of x, the decode step: each weight is read once, at the speed of memory,
// n * k * sizeof(W) bytes in all. A sum's order depends on k alone, so a row of y has the same bits
// for any number of rows beside it. x and W both bf16 or both f16: matmul_stream.cuh. Here, few_fma
// for f32 x and any W: a warp has R rows of W, its lanes take k in turn.
#pragma once
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "launch.cuh"
#include "matmul.h"

namespace ss::cuda {
namespace {

constexpr int kFew = 16;

__host__ __device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

__device__ inline void store_as(const Product& p, int64_t row, int64_t column, float sum) {
  if (p.bias) sum += p.bias[column];
  const int64_t at = row * p.y_stride + column;
  if (p.y_type == DType::f32)
    static_cast<float*>(p.y)[at] = sum;
  else if (p.y_type == DType::bf16)
    from_float(static_cast<__nv_bfloat16*>(p.y)[at], sum);
  else
    from_float(static_cast<__half*>(p.y)[at], sum);
}

// 16 bytes, or zeros. As written here: the compiler would move loads down to where they are used,
// and few would be under way at a time. Once: what no other block will want from the cache.
template <bool Once>
__device__ inline uint4 load_sixteen(const void* p, bool there) {
  uint4 v;
  if constexpr (Once)
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 "
        "%3, 0;\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"(static_cast<int>(there)));
  else
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 "
        "%3, 0;\n"
        "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"(static_cast<int>(there)));
  return v;
}

// V elements, or anything.
template <int V, class W>
__device__ inline Raw<W, V> load_raw(const W* p, bool there) {
  Raw<W, V> raw;
  if constexpr (sizeof(raw) == 16) {
    const uint4 bits = load_sixteen<true>(p, there);
    memcpy(&raw, &bits, sizeof raw);
  } else {
    static_assert(V == 1);
    raw.item[0] = there ? *p : W{};
  }
  return raw;
}

// V: elements of W in one access. M: at least as many as x has rows; the absent ones are copies of
// the last.
template <class W, int M, int V>
__global__ void __launch_bounds__(128, M <= 4 ? 4 : 2) few_fma(const Product p) {
  constexpr int R = M <= 4 ? 2 : 4, U = M <= 2 ? 4 : M <= 4 ? 2 : 1;
  const int lane = threadIdx.x % 32;
  const int64_t first = (blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32) * R, k = p.k;
  let_next_start();
  if (first >= p.n) return;  // the whole warp
  wait_for_previous();
  const W* w[R];
#pragma unroll
  for (int r = 0; r < R; r++)
    w[r] = static_cast<const W*>(p.w) + least(first + r, p.n - 1) * p.w_stride;
  const float* x = static_cast<const float*>(p.x);

  float sums[R][M] = {};
  for (int64_t k0 = lane * V; k0 < k; k0 += U * 32 * V) {
    Raw<W, V> raw[U][R];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int r = 0; r < R; r++)
        raw[u][r] = load_raw<V>(w[r] + k0 + u * 32 * V, k0 + u * 32 * V < k);
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int64_t at = k0 + u * 32 * V;
      if (at >= k) break;
#pragma unroll
      for (int i = 0; i < M; i++) {
        const Pack<V> v = Pack<V>::load(x + least(i, p.m - 1) * p.x_stride + at);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int j = 0; j < V; j++)
            sums[r][i] = fmaf(to_float(raw[u][r].item[j]), v.item[j], sums[r][i]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < M; i++) {
      const float sum = warp_sum(sums[r][i]);
      if (lane == (r * M + i) % 32 && i < p.m && first + r < p.n) store_as(p, i, first + r, sum);
    }
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class W, int M, int V>
void launch_few_fma(cudaStream_t stream, const Product& p) {
  constexpr int R = M <= 4 ? 2 : 4, kWarps = 4;
  launch(stream, few_fma<W, M, V>,
         {static_cast<unsigned>(ceil_div(p.n, R * kWarps)), 32u * kWarps}, p);
}

template <class W, int V>
void multiply_few_fma(cudaStream_t stream, const Product& p) {
  if (p.m == 1)
    launch_few_fma<W, 1, V>(stream, p);
  else if (p.m == 2)
    launch_few_fma<W, 2, V>(stream, p);
  else if (p.m <= 4)
    launch_few_fma<W, 4, V>(stream, p);
  else if (p.m <= 8)
    launch_few_fma<W, 8, V>(stream, p);
  else
    launch_few_fma<W, 16, V>(stream, p);
}

}  // namespace
}  // namespace ss::cuda
