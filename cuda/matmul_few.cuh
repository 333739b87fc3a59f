// matmul of up to 16 rows of x, the decode step: each weight is read once, at the speed of memory,
// n * k * sizeof(W) bytes in all. A sum's order depends on k alone, so a row of y has the same bits
// for any number of rows beside it.
//
// few_mma (x and W both bf16 or both f16): a block has 8 R rows of W; its warps take 64 columns of
// k in turn, and their sums are added in the order of the warps. The tensor cores multiply 16 rows
// of x, of which the absent ones are copies of the last; they have ten times the speed that memory
// asks for. few_fma (x f32, any W): a warp has R rows of W, its lanes take k in turn.
#pragma once
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "matmul.h"

namespace ss::cuda {
namespace {

constexpr int kFew = 16;

__device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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
        "@p ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"(static_cast<int>(there)));
  else
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 "
        "%3, 0;\n"
        "@p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"(static_cast<int>(there)));
  return v;
}

// Eight elements of a row from column `at` on, as pairs; zeros from column k on. Wide: as one
// access, with k a multiple of 8.
template <bool Wide, bool Once, class T>
__device__ inline uint4 load_eight(const T* row, int64_t at, int64_t k) {
  if constexpr (Wide) {
    return load_sixteen<Once>(row + at, at < k);
  } else {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t j = at + 2 * i;
      const uint16_t* bits = reinterpret_cast<const uint16_t*>(row);
      pair[i] =
          (j < k ? bits[j] : 0u) | (j + 1 < k ? static_cast<uint32_t>(bits[j + 1]) << 16 : 0u);
    }
    return {pair[0], pair[1], pair[2], pair[3]};
  }
}

constexpr int kFewWarps = 8;
constexpr int kFewStep = 64;  // columns that a warp takes at a time

// Tall: more than 8 rows of x. U: steps whose loads are under way together: for them it takes the
// second launch bound, without which the compiler saves registers and waits for each.
template <class T, int R, bool Tall, bool Wide>
__global__ void __launch_bounds__(32 * kFewWarps, 2) few_mma(const Product p) {
  constexpr int U = !Wide ? 1 : R == 1 ? 4 : R == 2 ? 2 : 1;
  __shared__ float sums[kFewWarps][16][8 * R + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int g = lane / 4, q = lane % 4;
  const int64_t first = blockIdx.x * int64_t{8 * R}, k = p.k;
  const T* x = static_cast<const T*>(p.x);
  const T* x_low = x + least(g, p.m - 1) * p.x_stride;
  const T* x_high = x + least(g + 8, p.m - 1) * p.x_stride;
  const T* w[R];
#pragma unroll
  for (int r = 0; r < R; r++)
    w[r] = static_cast<const T*>(p.w) + least(first + 8 * r + g, p.n - 1) * p.w_stride;

  float c[R][4] = {};
  for (int64_t k0 = warp * kFewStep; k0 < k; k0 += U * warps * kFewStep) {
    uint4 a_low[U][2], a_high[U][2], b[U][2][R];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int64_t at = k0 + u * warps * kFewStep + 32 * h + 8 * q;
#pragma unroll
        for (int r = 0; r < R; r++) b[u][h][r] = load_eight<Wide, true>(w[r], at, k);
        a_low[u][h] = load_eight<Wide, false>(x_low, at, k);
        a_high[u][h] = Tall ? load_eight<Wide, false>(x_high, at, k) : uint4{};
      }
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint4 low = a_low[u][h], high = a_high[u][h];
#pragma unroll
        for (int r = 0; r < R; r++) {
          mma(c[r], low.x, high.x, low.y, high.y, b[u][h][r].x, b[u][h][r].y, T{});
          mma(c[r], low.z, high.z, low.w, high.w, b[u][h][r].z, b[u][h][r].w, T{});
        }
      }
  }

#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][g + i / 2 * 8][8 * r + 2 * q + i % 2] = c[r][i];
  __syncthreads();
  for (int i = threadIdx.x; i < p.m * 8 * R; i += blockDim.x) {
    const int row = i / (8 * R), column = i % (8 * R);
    if (first + column >= p.n) continue;
    float sum = sums[0][row][column];
    for (int other = 1; other < warps; other++) sum += sums[other][row][column];
    store_as(p, row, first + column, sum);
  }
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
  if (first >= p.n) return;  // the whole warp
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

// Two steps a warp at least, so that the last sum does not cost more than it saves.
template <class T, int R, bool Tall, bool Wide>
void launch_few_mma(cudaStream_t stream, const Product& p) {
  const int64_t warps = ceil_div(p.k, 2 * kFewStep);
  const int threads = 32 * static_cast<int>(warps < 1 ? 1 : warps < kFewWarps ? warps : kFewWarps);
  few_mma<T, R, Tall, Wide><<<static_cast<unsigned>(ceil_div(p.n, 8 * R)), threads, 0, stream>>>(p);
}

// More rows of W a block mean less traffic for x, whose rows every block reads; fewer blocks than
// multiprocessors would leave some of those idle.
template <class T>
void multiply_few_mma(cudaStream_t stream, const Product& p, bool wide) {
  constexpr int64_t kBlocks = 128;
  const bool tall = p.m > 8;
  if (!wide)
    launch_few_mma<T, 1, true, false>(stream, p);
  else if (tall && p.n >= 32 * kBlocks)
    launch_few_mma<T, 4, true, true>(stream, p);
  else if (tall && p.n >= 16 * kBlocks)
    launch_few_mma<T, 2, true, true>(stream, p);
  else if (tall)
    launch_few_mma<T, 1, true, true>(stream, p);
  else if (p.m > 2 && p.n >= 16 * kBlocks)
    launch_few_mma<T, 2, false, true>(stream, p);
  else
    launch_few_mma<T, 1, false, true>(stream, p);
}

template <class W, int M, int V>
void launch_few_fma(cudaStream_t stream, const Product& p) {
  constexpr int R = M <= 4 ? 2 : 4, kWarps = 4;
  few_fma<W, M, V><<<static_cast<unsigned>(ceil_div(p.n, R * kWarps)), 32 * kWarps, 0, stream>>>(p);
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
