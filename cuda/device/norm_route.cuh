// A token's residual sum, its RMS norm and its router's logits, by a warp or a whole block. The
// router is f32 and multiplies the norm as it is written, rounded to T.
#pragma once
#include "dependent.cuh"
#include "pack.cuh"
#include "route.cuh"

namespace ss::cuda {

constexpr int kMostExperts = 64;  // of a router
constexpr int kAtOnce = 8;        // experts whose rows a thread multiplies together

template <class T>
struct Router {
  const T* x;  // [t, d] or null
  const float *residual, *norm_weight, *weight, *bias;  // [t, d], [d], [e, d], [e] or null
  float* sum;       // [t, d]
  T* normed;        // [t, d]
  float* logits;    // [t, e]
  int32_t* experts;  // [t, k]
  float* weights;    // [t, k]
  int64_t x_stride, residual_stride, weight_stride;
  int d, e, k;
  float eps;
  bool sigmoid, normalize;
};

// Sums of kAtOnce values over a warp at once: a lane gets that of value number lane % kAtOnce.
__device__ inline float warp_sums(float (&v)[kAtOnce]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = kAtOnce / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < half; i++) {
      const bool upper = lane & half;
      const float kept = upper ? v[i + half] : v[i], given = upper ? v[i] : v[i + half];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
    }
#pragma unroll
  for (int lanes = kAtOnce; lanes < 32; lanes *= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], lanes);
  return v[0];
}

// Threads: 32 or those of the block. Parts: packs of 4 columns of a thread.
template <int Threads, int Parts, class T>
struct NormedRow {
  static constexpr int kWarps = Threads / 32;
  const Router<T>& g;
  const int64_t row;
  const bool writes;  // whether sum and normed
  const int rank = threadIdx.x % Threads, lane = threadIdx.x % 32, warp = rank / 32;
  Pack<4> v[Parts];

  __device__ int column(int part) const { return (part * Threads + rank) * 4; }
  __device__ Pack<4> router(int expert, int part) const {
    if (expert >= g.e || column(part) >= g.d) return {};
    return Pack<4>::load(g.weight + expert * g.weight_stride + column(part));
  }

  // `each(column, values)` sees the norm; `logits` [e] is memory that all threads see, and
  // `of_warp` [kWarps][kMostExperts] is the block's, for rows of more than one warp.
  template <class F>
  __device__ void run(float* logits, float (*of_warp)[kMostExperts], F&& each) {
    Pack<4> weight[Parts], first[kAtOnce];
    float squares = 0;
#pragma unroll
    for (int p = 0; p < Parts; p++) {
      v[p] = {};
      if (column(p) >= g.d) continue;
      v[p] = Pack<4>::load(g.residual + row * g.residual_stride + column(p));
      weight[p] = Pack<4>::load(g.norm_weight + column(p));
      if (!g.x) continue;
      const Pack<4> add = Pack<4>::load(g.x + row * g.x_stride + column(p));
#pragma unroll
      for (int i = 0; i < 4; i++) v[p].item[i] += add.item[i];
    }
    if constexpr (kWarps > 1) {  // one row: what comes next is on its way meanwhile
#pragma unroll
      for (int j = 0; j < kAtOnce; j++) first[j] = router(j, 0);
    }
#pragma unroll
    for (int p = 0; p < Parts; p++)
#pragma unroll
      for (int i = 0; i < 4; i++) squares += v[p].item[i] * v[p].item[i];
    const float total = kWarps > 1 ? block_sum(squares) : warp_sum(squares);
    const float scale = rsqrtf(total / static_cast<float>(g.d) + g.eps);
#pragma unroll
    for (int p = 0; p < Parts; p++) {
      if (column(p) >= g.d) continue;
      if (writes) v[p].store(g.sum + row * g.d + column(p));
      Raw<T, 4> raw;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        from_float(raw.item[i], v[p].item[i] * (scale * weight[p].item[i]));
        v[p].item[i] = to_float(raw.item[i]);
      }
      if (writes) *reinterpret_cast<Raw<T, 4>*>(g.normed + row * g.d + column(p)) = raw;
      each(column(p), raw);
    }
    for (int e0 = 0; e0 < g.e; e0 += kAtOnce) {
      float dots[kAtOnce] = {};
#pragma unroll
      for (int p = 0; p < Parts; p++)
#pragma unroll
        for (int j = 0; j < kAtOnce; j++) {
          const Pack<4> r = kWarps > 1 && e0 == 0 && p == 0 ? first[j] : router(e0 + j, p);
#pragma unroll
          for (int i = 0; i < 4; i++) dots[j] = fmaf(v[p].item[i], r.item[i], dots[j]);
        }
      const float sum = warp_sums(dots);
      if (lane >= kAtOnce || e0 + lane >= g.e) continue;
      if constexpr (kWarps > 1)
        of_warp[warp][e0 + lane] = sum;
      else
        logits[e0 + lane] = sum + (g.bias ? g.bias[e0 + lane] : 0.0f);
    }
    if constexpr (kWarps > 1) {  // `logits` is of each warp
      __syncthreads();
      for (int j = lane; j < g.e; j += 32) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += of_warp[w][j];
        logits[j] = sum + (g.bias ? g.bias[j] : 0.0f);
      }
    }
    __syncwarp();
  }
};

}  // namespace ss::cuda
