// Which expert the next layer will choose, guessed long before it can: by its router, from the residual
// that the Mamba layer before it begins with. Experts' weights are two thirds of what a step reads, and
// memory would idle until the choice is made. Results never depend on a guess; a wrong one has brought a
// first matrix in vain.
#pragma once
#include "mixture_layer.cuh"
#include "reduce.cuh"

namespace ss::cuda::mixture {

// Whether the layer before this one guesses: a warp an expert.
template <class T>
__device__ __forceinline__ bool is_guessed(const Layers<T>& s, int layer) {
  return layer > 0 && layer < s.layers && s.layer[layer].has_experts && !s.layer[layer - 1].has_experts &&
         s.layer[layer].experts.e <= kLayerWarps;
}

// The logit that `expert` would have, by one warp. Its last one is the warp's that copies: the last of
// the others has shares to add up.
template <class T, class Size>
__device__ __forceinline__ void guess_logit(LayerMemory<Size>& shared, const ExpertLayer<T>& l, int expert) {
  constexpr int kQuads = Size::m / 4, kOfLane = (kQuads + 31) / 32, kTogether = (kOfLane + 1) / 2;
  const int lane = threadIdx.x % 32;
  if (expert < l.e) {
    const float4* router = reinterpret_cast<const float4*>(l.router + expert * Size::m);
    float dot = 0.0f;
#pragma unroll 1
    for (int first = lane; first < kQuads; first += 32 * kTogether)
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        const int at = first + 32 * i;
        if (at >= kQuads) continue;
        const float4 x = reinterpret_cast<const float4*>(shared.row)[at], row = router[at],
                     w = reinterpret_cast<const float4*>(l.norm)[at];
        dot = fmaf(x.x * w.x, row.x, dot), dot = fmaf(x.y * w.y, row.y, dot);
        dot = fmaf(x.z * w.z, row.z, dot), dot = fmaf(x.w * w.w, row.w, dot);
      }
    dot = warp_sum(dot);
    if (lane == 0) shared.guess[expert] = dot * shared.scale + (l.router_bias ? l.router_bias[expert] : 0.0f);
  }
  if (lane == 0) arrive(&shared.guessed);
}

}  // namespace ss::cuda::mixture
