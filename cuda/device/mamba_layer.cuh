// What the kernel of mamba_layers.cuh works on: a model's sizes, its layers' tensors, where the words
// of its blocks lie, and its shared memory; and halves in pairs.
#pragma once
#include <stdint.h>

#include "exchange.cuh"
#include "fault.cuh"
#include "pack.cuh"
#include "weight_ring.cuh"

namespace ss::cuda {

constexpr int kLayerBlocks = 128;  // that must run at once, one on a multiprocessor
constexpr int kLayerWarps = 8, kLayerThreads = 32 * kLayerWarps;  // and a warp that fills the ring
constexpr int kMostLayers = 64;                                   // of a launch
constexpr int kMostManyLayers = 48;  // of some sequences: what fits a kernel's parameters
constexpr int kLayerStates = 16, kLayerTaps = 4;
constexpr int kTilesAhead = 2;  // under way for a block: enough for memory, see docs/kernels

// Of a model m wide, as published: all else follows from m, and is known when compiled.
template <int Model>
struct LayerSizes {
  static constexpr int m = Model, d = 2 * m, r = m / 16, k = r + 2 * kLayerStates;
  static constexpr int channels = d / kLayerBlocks, out_rows = m / kLayerBlocks;  // of a block
  static constexpr int columns = m % 1280 == 0 ? 1280 : m % 1024 == 0 ? 1024 : 768;  // of a tile
  // Words of the exchange: three f32 or six halves each.
  static constexpr int dbc_words = (k + 2) / 3;                                  // of a block
  static constexpr int y_words = (channels + 5) / 6, mixed_words = (out_rows + 5) / 6;  // of a block
  static_assert(d % kLayerBlocks == 0 && m % columns == 0 && columns % (32 * kLayerWarps) == 0 &&
                channels % 4 == 0 && out_rows % 2 == 0 && r % 16 == 0 && k <= 30 * kLayerWarps);
};

template <class T>
struct Layer {
  const float* norm;                     // [m]
  const T *in_proj, *out_proj;           // [2 d, m], [m, d]
  const float *conv_weight, *conv_bias;  // [d, 4], [d] or null
  T* conv_state;                         // [p, d, 3]
  const T *x_proj, *dt_weight;           // [k, d], [d, r]
  const float *dt_bias, *A, *D;          // [d], [d, 16], [d]
  float* scan_state;                     // [p, d, 16]
  float* sum;                            // [m]
  T *normed, *xz, *u, *dbc, *gated, *y;  // [m], [2 d], [d], [k], [d], [m]
};

// What ends a step: a norm and a product. No rows: it is not part of the launch.
template <class T>
struct Head {
  const float *norm, *norm_bias;  // [m], [m] or null
  const T* weight;                // [rows, m]
  const float* bias;              // [rows] or null
  float *sum, *logits;            // [m], [rows]
  T* normed;                      // [m]
  int rows;
  float eps;
  bool centred;  // LayerNorm; else RMSNorm
};

template <class T>
struct Layers {
  Layer<T> layer[kMostLayers];
  const T* x;             // [m] or null
  const float* residual;  // [m]
  const int32_t *offsets, *slots;
  int64_t pool;
  Word* words;  // the first holds the number of the last round
  int layers, stages;
  float eps;
  Fault *bad_offset, *bad_slot;
  Head<T> head;
};

// Each block's shares of dbc, then dbc, y, and what a layer adds to the residual.
template <class Size>
struct LayerWords {
  Word *shares, *dbc, *y, *mixed;  // of each block but dbc, of which there is one

  static constexpr int count =
      1 + (kLayerBlocks + 1) * Size::dbc_words + kLayerBlocks * (Size::y_words + Size::mixed_words);
  __device__ explicit LayerWords(Word* words) {
    shares = words + 1;
    dbc = shares + kLayerBlocks * Size::dbc_words;
    y = dbc + Size::dbc_words;
    mixed = y + kLayerBlocks * Size::y_words;
  }
};

// Shared memory, after the ring.
template <class Size>
struct alignas(16) LayerMemory {
  uint64_t full[kMostStages], free[kMostStages];
  uint32_t act[Size::d / 2];  // halves
  float norm[Size::m];
  float sums[kLayerWarps][2 * Size::channels];
  float u[Size::channels], z[Size::channels], dbc[3 * Size::dbc_words + 2];
  float squares[kLayerWarps];
  float y[6 * Size::y_words], mixed[6 * Size::mixed_words];
};

__device__ __forceinline__ float rounded_to(float x, __nv_bfloat16) {
  return to_float(__float2bfloat16_rn(x));
}
__device__ __forceinline__ float rounded_to(float x, __half) { return to_float(__float2half_rn(x)); }
__device__ __forceinline__ uint32_t pair_bits(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 p = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&p);
}
__device__ __forceinline__ uint32_t pair_bits(float a, float b, __half) {
  const __half2 p = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&p);
}
__device__ __forceinline__ float2 pair_floats(uint32_t bits, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}
__device__ __forceinline__ float2 pair_floats(uint32_t bits, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
// a . b of four halves.
template <class T>
__device__ __forceinline__ float add_four(float sum, uint2 a, float4 b, T) {
  const float2 low = pair_floats(a.x, T{}), high = pair_floats(a.y, T{});
  sum = fmaf(low.x, b.x, sum), sum = fmaf(low.y, b.y, sum);
  return fmaf(high.y, b.w, fmaf(high.x, b.z, sum));
}

}  // namespace ss::cuda
