// What one block does of a Mamba layer of mixture_layers.cuh, phase by phase.
#pragma once
#include <type_traits>

#include "mixture_block.cuh"
#include "mixture_guess.cuh"

namespace ss::cuda::mixture {

template <class T, class Size>
struct MambaPhases {
  using Channels = typename Size::Channels;
  static constexpr int m = Size::m, d = Size::d, r = Size::r, k = Size::k, unit = Size::unit;
  static constexpr int most = Size::channels, kUnits = most / unit;
  static constexpr int kRank4 = r / 4;
  static_assert(most * 4 <= kLayerThreads);

  LayerBlock<T, Size>& b;
  LayerMemory<Size>& shared = b.shared;
  const int thread = b.thread, lane = b.lane, warp = b.warp, block = b.block;
  const int first = Channels::begin(block), channels = Channels::count(block);
  const int c = thread / 4, quarter = thread % 4;  // of a piece: 4 states of a channel
  const int column = warp * 30 + lane;             // of x_proj; three of a warp's a word
  const bool has_piece = c < channels, has_column = lane < 30 && column < k;
  int64_t slot;

  using Piece = std::conditional_t<unit == 4, uint2, uint32_t>;  // of a row of x_proj
  Piece x_proj[kUnits];
  uint2 dt_weight[kRank4 / 4];
  float4 conv_weight, A, h;
  float conv_bias, dt_bias, D;
  T past[kLayerTaps - 1];

  // What does not depend on the layer before.
  __device__ __forceinline__ void load(const MambaLayer<T>& l) {
    b.load_norm(l.norm);
    if (has_column) {
#pragma unroll
      for (int i = 0; i < kUnits; i++)
        if (Channels::even || i * unit < channels)
          x_proj[i] = reinterpret_cast<const Piece*>(l.x_proj + column * d + first)[i];
        else
          x_proj[i] = Piece{};
    }
    if (thread < channels) {
      conv_weight = reinterpret_cast<const float4*>(l.conv_weight)[first + thread];
      conv_bias = l.conv_bias ? l.conv_bias[first + thread] : 0.0f;
#pragma unroll
      for (int i = 0; i < kLayerTaps - 1; i++)
        if (slot < 0)
          from_float(past[i], 0.0f);
        else
          past[i] = l.conv_state[(slot * d + first + thread) * (kLayerTaps - 1) + i];
    }
  }
  // The same of the next layer, and what its states need, into the L2.
  __device__ __forceinline__ void ask_for(const MambaLayer<T>& l) {
    if (has_column) {
      ask(l.x_proj + column * d + first);
      ask(l.x_proj + column * d + first + channels - 1);
    }
    if (has_piece) {
      ask(l.dt_weight + (first + c) * r + quarter * kRank4);
      if (quarter % 2 == 0) {
        ask(l.A + (first + c) * kLayerStates + quarter * 4);
        if (slot >= 0) ask(l.scan_state + (slot * d + first + c) * kLayerStates + quarter * 4);
      }
      if (quarter == 1) {
        ask(l.conv_weight + (first + c) * kLayerTaps);
        if (slot >= 0) ask(l.conv_state + (slot * d + first + c) * (kLayerTaps - 1));
      }
    }
    if (thread < 3) {
      const float* p = thread == 0 ? l.conv_bias : thread == 1 ? l.dt_bias : l.D;
      if (p) ask(p + first), ask(p + first + channels - 1);
    }
    if (block < m / 32 && thread == 32) ask(l.norm + block * 32);
  }

  // The convolution of this block's channels, and their gates.
  __device__ __forceinline__ void convolve(const MambaLayer<T>& l) {
    if (thread < channels) {
      T x;
      from_float(x, b.added(thread));
      float total = fmaf(conv_weight.x, to_float(past[0]), conv_bias);
      total = fmaf(conv_weight.y, to_float(past[1]), total);
      total = fmaf(conv_weight.z, to_float(past[2]), total);
      total = fmaf(conv_weight.w, to_float(x), total);
      T u;
      from_float(u, silu(total));
      shared.u[thread] = to_float(u);
      l.xz[first + thread] = x, l.u[first + thread] = u;
      if (slot >= 0) {
        T* state = l.conv_state + (slot * d + first + thread) * (kLayerTaps - 1);
        state[0] = past[1], state[1] = past[2], state[2] = x;
      }
    } else if (!Channels::even && thread < most) {
      shared.u[thread] = 0.0f;
    } else if (thread >= 64 && thread < 64 + channels) {
      T z;
      from_float(z, b.added(channels + thread - 64));
      shared.z[thread - 64] = silu(to_float(z));
      l.xz[d + first + thread - 64] = z;
    }
    sync_layer();
  }

  // This block's shares of x_proj go to those who add up all blocks'.
  __device__ __forceinline__ void share() {
    float x = 0.0f;
    if (has_column) {
#pragma unroll
      for (int i = 0; i < kUnits; i++)
        if constexpr (unit == 4)
          x = add_four(x, x_proj[i], reinterpret_cast<const float4*>(shared.u)[i], T{});
        else
          x = add_two(x, x_proj[i], reinterpret_cast<const float2*>(shared.u)[i], T{});
    }
    const uint32_t bits = __float_as_uint(x);
    const uint32_t a = __shfl_sync(0xffffffffu, bits, 3 * lane),
                   e = __shfl_sync(0xffffffffu, bits, 3 * lane + 1),
                   f = __shfl_sync(0xffffffffu, bits, 3 * lane + 2);
    if (lane < 10 && warp * 10 + lane < Size::dbc_words)
      publish(b.words.shares + block * Size::dbc_words + warp * 10 + lane, a, e, f, b.round);
  }
  // What the states need.
  __device__ __forceinline__ void load_states(const MambaLayer<T>& l) {
    h = A = float4{};
    dt_bias = D = 0.0f;
#pragma unroll
    for (int i = 0; i < kRank4 / 4; i++) dt_weight[i] = uint2{};
    if (!has_piece) return;
#pragma unroll
    for (int i = 0; i < kRank4 / 4; i++)
      dt_weight[i] =
          reinterpret_cast<const uint2*>(l.dt_weight + (first + c) * r + quarter * kRank4)[i];
    A = reinterpret_cast<const float4*>(l.A + (first + c) * kLayerStates)[quarter];
    dt_bias = l.dt_bias[first + c], D = l.D[first + c];
    if (slot >= 0)
      h = reinterpret_cast<const float4*>(l.scan_state + (slot * d + first + c) * kLayerStates)[quarter];
  }
  // Three columns of dbc: one warp adds up the shares, always in the same order.
  __device__ __forceinline__ void add_shares(const MambaLayer<T>& l) {
    constexpr int kEach = kLayerBlocks / 32;
    const Word* from = b.words.shares + lane * Size::dbc_words + block;
    Word w[kEach];
    await(w, from, 32 * Size::dbc_words, kEach, b.round);
    float total[3] = {};
#pragma unroll
    for (int i = 0; i < kEach; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) total[j] += __uint_as_float(w[i].bits[j]);
#pragma unroll
    for (int j = 0; j < 3; j++) total[j] = rounded_to(warp_sum(total[j]), T{});
    if (lane < 3 && 3 * block + lane < k)
      from_float(l.dbc[3 * block + lane], lane == 0 ? total[0] : lane == 1 ? total[1] : total[2]);
    if (lane < kCopies)
      publish(b.words.dbc + (lane * Size::dbc_words + block) * kApart, __float_as_uint(total[0]),
              __float_as_uint(total[1]), __float_as_uint(total[2]), b.round);
  }
  __device__ __forceinline__ void get_dbc() {
    Word w[1];
    b.hear(w, b.words.dbc, Size::dbc_words, b.round);
    if (thread < Size::dbc_words) {
#pragma unroll
      for (int j = 0; j < 3; j++) shared.dbc[3 * thread + j] = __uint_as_float(w[0].bits[j]);
    }
    sync_layer();
  }

  // dt_proj and one step of the states; y to all blocks.
  __device__ __forceinline__ void advance(const MambaLayer<T>& l) {
    float dt = 0.0f;
#pragma unroll
    for (int i = 0; i < kRank4 / 4; i++)
      dt = add_four(dt, dt_weight[i], reinterpret_cast<const float4*>(shared.dbc + quarter * kRank4)[i], T{});
    dt += __shfl_xor_sync(0xffffffffu, dt, 1);
    dt += __shfl_xor_sync(0xffffffffu, dt, 2);
    dt = softplus(rounded_to(dt, T{}) + dt_bias);
    const int channel = has_piece ? c : 0;
    const float u = shared.u[channel], dtu = dt * u;
    const float4 B = reinterpret_cast<const float4*>(shared.dbc + r)[quarter];
    const float4 C = reinterpret_cast<const float4*>(shared.dbc + r + kLayerStates)[quarter];
    h.x = fmaf(exp2_approx(dt * (A.x * kLog2e)), h.x, dtu * B.x);
    h.y = fmaf(exp2_approx(dt * (A.y * kLog2e)), h.y, dtu * B.y);
    h.z = fmaf(exp2_approx(dt * (A.z * kLog2e)), h.z, dtu * B.z);
    h.w = fmaf(exp2_approx(dt * (A.w * kLog2e)), h.w, dtu * B.w);
    float y = fmaf(h.w, C.w, fmaf(h.z, C.z, fmaf(h.y, C.y, h.x * C.x)));
    y += __shfl_xor_sync(0xffffffffu, y, 2);
    y += __shfl_xor_sync(0xffffffffu, y, 1);
    if (has_piece && quarter == 0) {
      shared.y[c] = fmaf(D, u, y) * shared.z[c];
      from_float(l.gated[first + c], shared.y[c]);
    }
    sync_layer();
    b.template tell<Size::y_words>(b.words.y, shared.y);
    if (has_piece && slot >= 0)
      reinterpret_cast<float4*>(l.scan_state + (slot * d + first + c) * kLayerStates)[quarter] = h;
  }

  // `next`: the layer after this one, if its choice is to be guessed.
  __device__ __forceinline__ void run(const MambaLayer<T>& l, const ExpertLayer<T>* next) {
    b.norm(l.sum, l.normed, next != nullptr);
    b.multiply_rows(2 * channels);
    convolve(l);
    share();
    if (next && warp < kLayerWarps - 1) guess_logit<T>(shared, *next, warp);
    load_states(l);
    if (warp == kLayerWarps - 1 && block < Size::dbc_words) add_shares(l);
    get_dbc();
    advance(l);
    b.template gather<Channels, Size::y_words>(b.words.y);
    b.template multiply_columns<d>();
    b.leave(l.y, [](float y) { return y; });
  }
};

}  // namespace ss::cuda::mixture
