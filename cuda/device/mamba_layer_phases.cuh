// What one block does of a layer of mamba_layers.cuh, phase by phase.
#pragma once
#include "activation.cuh"
#include "mamba_layer.cuh"
#include "mma.cuh"
#include "reduce.cuh"

namespace ss::cuda {

// The threads that compute, without the one warp that copies.
__device__ __forceinline__ void sync_layer() {
  asm volatile("bar.sync 1, %0;" ::"n"(kLayerThreads) : "memory");
}
__device__ __forceinline__ void ask(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// What a block's threads hold of a layer, and its steps in their order.
template <class T, int Model>
struct LayerStep {
  using Size = LayerSizes<Model>;
  static constexpr int m = Size::m, d = Size::d, r = Size::r, k = Size::k;
  static constexpr int channels = Size::channels, out_rows = Size::out_rows, columns = Size::columns;
  static constexpr int kSums = (kLayerBlocks * Size::mixed_words + kLayerThreads - 1) / kLayerThreads;
  static constexpr int kYs = (kLayerBlocks * Size::y_words + kLayerThreads - 1) / kLayerThreads;
  static constexpr int kPieces = channels * 4;  // of the states: 4 of a channel each
  static constexpr int kRank4 = r / 4;
  static_assert(kPieces <= kLayerThreads);

  const Layers<T>& s;
  LayerMemory<Size>& shared;
  Ring ring;
  const LayerWords<Size> words{s.words};
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, block = blockIdx.x;
  const int first = block * channels;
  const int c = thread / 4, quarter = thread % 4;           // of a piece
  const int column = warp * 30 + lane;                      // of x_proj; three of a warp's a word
  const bool has_piece = thread < kPieces, has_column = lane < 30 && column < k;
  int64_t slot;
  uint32_t round;

  float sum[kSums][6];  // the residual
  uint2 x_proj[channels / 4], dt_weight[kRank4 / 4];
  float4 conv_weight, A, h;
  float conv_bias, dt_bias, D;
  T past[kLayerTaps - 1];

  // Where the six halves of a word of the residual begin; m where there are none.
  __device__ int sum_begin(int i) const {
    const int word = thread + i * kLayerThreads;
    return word < kLayerBlocks * Size::mixed_words
               ? word / Size::mixed_words * out_rows + word % Size::mixed_words * 6
               : m;
  }
  __device__ int sum_end(int i) const {
    const int word = thread + i * kLayerThreads;
    return word < kLayerBlocks * Size::mixed_words ? (word / Size::mixed_words + 1) * out_rows : 0;
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 6; j++) {
        const int at = sum_begin(i) + j;
        sum[i][j] = 0.0f;
        if (at >= sum_end(i)) continue;
        sum[i][j] = s.residual[at];
        if (s.x) sum[i][j] += to_float(s.x[at]);
      }
  }

  // What does not depend on the layer before.
  __device__ __forceinline__ void load(const Layer<T>& l) {
    for (int i = thread * 4; i < m; i += kLayerThreads * 4)
      copy_async(shared.norm + i, l.norm + i, true);
    end_copy_group();
    if (has_column) {
#pragma unroll
      for (int i = 0; i < channels / 4; i++)
        x_proj[i] = reinterpret_cast<const uint2*>(l.x_proj + column * d + first)[i];
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
  __device__ __forceinline__ void ask_for(const Layer<T>& l) {
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

  // The residual with what the layer before has added.
  __device__ __forceinline__ void add_mixed() {
    constexpr int kAll = kLayerBlocks * Size::mixed_words;
    Word w[kSums];
    await(w, words.mixed + thread, kLayerThreads,
          (kAll - thread + kLayerThreads - 1) / kLayerThreads, round - 1);
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) {
        const float2 add = pair_floats(w[i].bits[j], T{});
        if (sum_begin(i) + 2 * j < sum_end(i)) sum[i][2 * j] += add.x, sum[i][2 * j + 1] += add.y;
      }
  }
  __device__ __forceinline__ void norm(const Layer<T>& l) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 6; j++) squares = fmaf(sum[i][j], sum[i][j], squares);
    squares = warp_sum(squares);
    if (lane == 0) shared.squares[warp] = squares;
    wait_copy_groups<0>();
    sync_layer();
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kLayerWarps; i++) all += shared.squares[i];
    const float scale = rsqrtf(all / static_cast<float>(m) + s.eps);
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 6; j += 2) {
        const int at = sum_begin(i) + j;
        if (at >= sum_end(i)) continue;
        const float2 w = *reinterpret_cast<const float2*>(shared.norm + at);
        shared.act[at / 2] = pair_bits(sum[i][j] * (scale * w.x), sum[i][j + 1] * (scale * w.y), T{});
        if (at / out_rows != block) continue;
        *reinterpret_cast<float2*>(l.sum + at) = {sum[i][j], sum[i][j + 1]};
        *reinterpret_cast<uint32_t*>(l.normed + at) = shared.act[at / 2];
      }
    sync_layer();
  }

  // Sums of `Units` groups of 8 rows of weights with act, each warp's share of the columns.
  template <int Units, int Chunks>
  __device__ __forceinline__ void multiply() {
    constexpr int kSteps = columns / (32 * kLayerWarps);
    const int g = lane / 4, q = lane % 4, offset = warp * kSteps * 64 + q * 16;
    const char* act = reinterpret_cast<const char*>(shared.act) + offset;
#pragma unroll 1
    for (int unit = 0; unit < Units; unit++) {
      float c[2][4] = {};
#pragma unroll 1
      for (int chunk = 0; chunk < Chunks; chunk++) {
        uint4 a[kSteps], w[kSteps];
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          a[i] = *reinterpret_cast<const uint4*>(act + chunk * 2 * columns + i * 64);
          if (g > 0) a[i] = uint4{};
        }
        ring.wait();
        const char* tile = ring.tile() + g * ring.pitch + offset;
#pragma unroll
        for (int i = 0; i < kSteps; i++) w[i] = *reinterpret_cast<const uint4*>(tile + i * 64);
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          mma(c[0], a[i].x, 0, a[i].y, 0, w[i].x, w[i].y, T{});
          mma(c[1], a[i].z, 0, a[i].w, 0, w[i].z, w[i].w, T{});
        }
        ring.give_back();
      }
      if (g == 0)
        *reinterpret_cast<float2*>(&shared.sums[warp][unit * 8 + 2 * q]) = {c[0][0] + c[1][0],
                                                                            c[0][1] + c[1][1]};
    }
    sync_layer();
  }
  __device__ __forceinline__ float added(int row) const {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kLayerWarps; i++) all += shared.sums[i][row];
    return all;
  }

  // The convolution of this block's channels, and their gates.
  __device__ __forceinline__ void convolve(const Layer<T>& l) {
    if (thread < channels) {
      T x;
      from_float(x, added(thread));
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
    } else if (thread >= 64 && thread < 64 + channels) {
      T z;
      from_float(z, added(channels + thread - 64));
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
      for (int i = 0; i < channels / 4; i++)
        x = add_four(x, x_proj[i], reinterpret_cast<const float4*>(shared.u)[i], T{});
    }
    const uint32_t bits = __float_as_uint(x);
    const uint32_t a = __shfl_sync(0xffffffffu, bits, 3 * lane),
                   b = __shfl_sync(0xffffffffu, bits, 3 * lane + 1),
                   e = __shfl_sync(0xffffffffu, bits, 3 * lane + 2);
    if (lane < 10 && warp * 10 + lane < Size::dbc_words)
      publish(words.shares + block * Size::dbc_words + warp * 10 + lane, a, b, e, round);
  }
  // What the states need.
  __device__ __forceinline__ void load_states(const Layer<T>& l) {
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
  __device__ __forceinline__ void add_shares(const Layer<T>& l) {
    constexpr int kEach = kLayerBlocks / 32;
    const Word* from = words.shares + lane * Size::dbc_words + block;
    Word w[kEach];
    await(w, from, 32 * Size::dbc_words, kEach, round);
    float total[3] = {};
#pragma unroll
    for (int i = 0; i < kEach; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) total[j] += __uint_as_float(w[i].bits[j]);
#pragma unroll
    for (int j = 0; j < 3; j++) total[j] = rounded_to(warp_sum(total[j]), T{});
    if (lane < 3 && 3 * block + lane < k)
      from_float(l.dbc[3 * block + lane], lane == 0 ? total[0] : lane == 1 ? total[1] : total[2]);
    if (lane == 0)
      publish(words.dbc + block, __float_as_uint(total[0]), __float_as_uint(total[1]),
              __float_as_uint(total[2]), round);
  }
  __device__ __forceinline__ void get_dbc() {
    Word w[1];
    await(w, words.dbc + thread, 1, thread < Size::dbc_words ? 1 : 0, round);
    if (thread < Size::dbc_words) {
#pragma unroll
      for (int j = 0; j < 3; j++) shared.dbc[3 * thread + j] = __uint_as_float(w[0].bits[j]);
    }
    sync_layer();
  }

  // dt_proj and one step of the states.
  __device__ __forceinline__ void advance(const Layer<T>& l) {
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
    if (thread < Size::y_words) {
      const float* six = shared.y + 6 * thread;
      publish(words.y + block * Size::y_words + thread, pair_bits(six[0], six[1], T{}),
              pair_bits(six[2], six[3], T{}), pair_bits(six[4], six[5], T{}), round);
    }
    if (has_piece && slot >= 0)
      reinterpret_cast<float4*>(l.scan_state + (slot * d + first + c) * kLayerStates)[quarter] = h;
  }
  __device__ __forceinline__ void get_y() {
    constexpr int kAll = kLayerBlocks * Size::y_words;
    Word w[kYs];
    await(w, words.y + thread, kLayerThreads, (kAll - thread + kLayerThreads - 1) / kLayerThreads,
          round);
#pragma unroll
    for (int i = 0; i < kYs; i++) {
      const int word = thread + i * kLayerThreads, of = word % Size::y_words * 3;
      if (word >= kAll) continue;
#pragma unroll
      for (int j = 0; j < 3; j++)
        if (2 * (of + j) < channels) shared.act[word / Size::y_words * (channels / 2) + of + j] = w[i].bits[j];
    }
    sync_layer();
  }

  // This block's rows of out_proj, to all.
  __device__ __forceinline__ void leave(const Layer<T>& l) {
    if (warp > 0) return;
    if (lane < out_rows) {
      T y;
      from_float(y, added(lane));
      l.y[block * out_rows + lane] = y;
      shared.mixed[lane] = to_float(y);
    }
    __syncwarp();
    if (lane < Size::mixed_words) {
      const float* six = shared.mixed + 6 * lane;
      publish(words.mixed + block * Size::mixed_words + lane, pair_bits(six[0], six[1], T{}),
              pair_bits(six[2], six[3], T{}), pair_bits(six[4], six[5], T{}), round);
    }
  }
};

}  // namespace ss::cuda
