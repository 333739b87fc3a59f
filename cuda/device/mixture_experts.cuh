// What one block does of a mixture of experts of mixture_layers.cuh, phase by phase. One expert of a
// token; every block makes the choice itself, from the normed row that it has.
#pragma once
#include "gate.cuh"
#include "mixture_block.cuh"
#include "route.cuh"

namespace ss::cuda::mixture {

template <class T, class Size>
struct ExpertPhases {
  using HiddenRows = typename Size::HiddenRows;
  static constexpr int m = Size::m, h = Size::h;
  static constexpr int kQuads = (m / 4 + 31) / 32;  // of an expert's row of the router, of a lane
  static constexpr int kEarly = kQuads > 9 ? kQuads / 2 : kQuads;  // what registers hold of them

  LayerBlock<T, Size>& b;
  LayerMemory<Size>& shared = b.shared;
  const int thread = b.thread, lane = b.lane, warp = b.warp, block = b.block;
  const int first = HiddenRows::begin(block), columns = HiddenRows::count(block);
  uint32_t parity = 0, guess_parity = 0;  // of the barriers `routed` and `guessed`
  float4 router[kEarly];  // of the expert that has this warp's number
  float bias, up_bias;    // of the router, then of this lane's hidden column

  __device__ __forceinline__ float4 quad(const ExpertLayer<T>& l, int expert, int i) const {
    const int at = lane + 32 * i;
    return expert < l.e && at < m / 4 ? reinterpret_cast<const float4*>(l.router + expert * m)[at]
                                      : float4{};
  }
  __device__ __forceinline__ void load(const ExpertLayer<T>& l) {
    b.load_norm(l.norm);
#pragma unroll
    for (int i = 0; i < kEarly; i++) router[i] = quad(l, warp, i);
    bias = l.router_bias && warp < l.e ? l.router_bias[warp] : 0.0f;
  }
  __device__ __forceinline__ void ask_for(const ExpertLayer<T>& l) {
    constexpr int kLine = 32;  // floats
    for (int i = block * kLine + thread * kLayerBlocks * kLine; i < l.e * m; i += kLayerBlocks * kLayerThreads * kLine)
      ask(l.router + i);
    if (block < m / kLine && thread == 32) ask(l.norm + block * kLine);
  }

  // The choice: each warp makes the logits of its experts.
  __device__ __forceinline__ int route(const ExpertLayer<T>& l) {
    for (int expert = warp; expert < l.e; expert += kLayerWarps) {
      float dot = 0.0f;
      const auto add = [&](int i, float4 row) {
        if (lane + 32 * i < m / 4)
          dot = add_four(dot, reinterpret_cast<const uint2*>(shared.act)[lane + 32 * i], row, T{});
      };
#pragma unroll
      for (int i = 0; i < kEarly; i++) add(i, expert > warp ? quad(l, expert, i) : router[i]);
#pragma unroll
      for (int i = kEarly; i < kQuads; i++) add(i, quad(l, expert, i));
      if (expert > warp && l.router_bias) bias = l.router_bias[expert];
      dot = warp_sum(dot);
      if (lane == 0) shared.logits[expert] = dot + bias;
    }
    if (lane == 0) arrive(&shared.routed);
    wait_barrier(&shared.routed, parity);
    parity ^= 1;
    return best_of(shared.logits, l.e);
  }
  // What the chosen expert's row is multiplied by; one warp of one block writes it all down.
  __device__ __forceinline__ float weigh(const ExpertLayer<T>& l, int expert) {
    float weight = Weigh(shared.logits, l.e, l.sigmoid)(expert);
    if (l.normalize) weight /= weight;
    if (block > 0) return weight;
    for (int i = lane; i < l.e; i += 32) l.logits[i] = shared.logits[i];
    if (lane == 0) *l.expert = expert, *l.weight = weight;
    return weight;
  }
  // What the products' sums will need, on its way before they begin.
  __device__ __forceinline__ void load_biases(const ExpertLayer<T>& l, int expert) {
    if (warp > 0 || lane >= columns || !l.up_bias) return;
    const float* own = l.up_bias + int64_t{expert} * (l.gated ? 2 * h : h) + first + lane;
    bias = own[0];
    if (l.gated) up_bias = own[h];
  }
  // The hidden row's columns of this block, to all.
  __device__ __forceinline__ void activate(const ExpertLayer<T>& l) {
    if (warp > 0) return;
    if (lane < columns) {
      float gate = b.added(lane), up = l.gated ? b.added(columns + lane) : 1.0f;
      if (l.up_bias) {
        gate += bias;
        if (l.gated) up += up_bias;
      }
      T value;
      from_float(value, activated_briefly(gate, l.kind) * up);
      l.hidden[first + lane] = value;
      shared.hidden[lane] = to_float(value);
    }
    __syncwarp();
    b.template tell<Size::hidden_words>(b.words.hidden, shared.hidden);
  }

  __device__ __forceinline__ void run(const ExpertLayer<T>& l, bool guessed) {
    b.norm(l.sum, l.normed, false);
    const int expert = route(l);
    if (guessed) {
      wait_barrier(&shared.guessed, guess_parity);
      guess_parity ^= 1;
      const int guess = best_of(shared.guess, l.e);
      if (guess != expert) b.skip(l.gated ? 2 * columns : columns);
    }
    load_biases(l, expert);
    b.multiply_rows(l.gated ? 2 * columns : columns);
    activate(l);
    const float weight = warp == 0 ? weigh(l, expert) : 0.0f;
    float down_bias = 0.0f;
    if (warp == 0 && lane < b.rows && l.down_bias)
      down_bias = l.down_bias[int64_t{expert} * m + b.first_row + lane];
    b.template gather<HiddenRows, Size::hidden_words>(b.words.hidden);
    b.template multiply_columns<h>();
    b.leave(l.y, [&](float y) { return weight * y + (l.down_bias ? weight * down_bias : 0.0f); });
  }
};

}  // namespace ss::cuda::mixture
