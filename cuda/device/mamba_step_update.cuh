// The last kernel of mamba_step for many sequences: their states as they come, 8 of a channel's 16 a
// thread. A block has 64 channels of Rows sequences, and asks for all that it needs before it needs
// the first.
#pragma once
#include "mamba_step.cuh"
#include "stochastic.cuh"

namespace ss::cuda {

constexpr int kUpdateThreads = 128, kUpdateChannels = kUpdateThreads / 2;

// A thread's 8 of a channel's states, of its A, B or C, in the order of states kept in S: of f32 two
// quads that are 8 apart, so that neighbouring threads fill sectors.
template <class S>
struct Share {
  static constexpr bool kApart = sizeof(S) == 4;
  float item[8];

  __device__ __forceinline__ static int quad(int i, int part) {
    return kApart ? 2 * i + part : 2 * part + i;
  }
  __device__ __forceinline__ static Share of(const float4* row, int part) {
    const float4 a = row[quad(0, part)], b = row[quad(1, part)];
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  }
};

// As they lie in memory.
template <class S>
struct Kept {
  uint4 word[sizeof(S) / 2];

  __device__ __forceinline__ static Kept load(const S* row, int part) {
    Kept kept;
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int i = 0; i < 2; i++)
        kept.word[i] = reinterpret_cast<const uint4*>(row)[Share<S>::quad(i, part)];
    } else {
      kept.word[0] = reinterpret_cast<const uint4*>(row)[part];
    }
    return kept;
  }
  __device__ __forceinline__ Share<S> open() const {
    const Raw<S, 8> raw = *reinterpret_cast<const Raw<S, 8>*>(word);
    Share<S> share;
#pragma unroll
    for (int k = 0; k < 8; k++) share.item[k] = to_float(raw.item[k]);
    return share;
  }
};

template <class S>
__device__ __forceinline__ void keep(S* row, int part, const Share<S>& h, Dice dice) {
  if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      reinterpret_cast<float4*>(row)[Share<S>::quad(i, part)] = {
          h.item[4 * i], h.item[4 * i + 1], h.item[4 * i + 2], h.item[4 * i + 3]};
  } else {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      word[i] = round_pair<S>(h.item[2 * i], h.item[2 * i + 1], dice.pair(i));
    reinterpret_cast<uint4*>(row)[part] = {word[0], word[1], word[2], word[3]};
  }
}

template <class T, class S, int Rows>
__global__ void __launch_bounds__(kUpdateThreads, Rows > 2 ? 6 : 8)
    mamba_step_update(const __grid_constant__ Step<T> s) {
  __shared__ float4 coefficients[Rows][2 * kStates / 4];  // B, then C
  const int blocks = (s.d + kUpdateChannels - 1) / kUpdateChannels, thread = threadIdx.x;
  const int first_row = static_cast<int>(blockIdx.x) / blocks * Rows;
  const int first = static_cast<int>(blockIdx.x) % blocks * kUpdateChannels;
  const int rows = s.count - first_row < Rows ? s.count - first_row : Rows;
  const int channel = first + thread / 2, part = thread % 2;
  wait_for_previous();
  let_next_start();  // not sooner: step_out.cuh

  const bool mine = channel < s.d;  // of a whole warp
  int slot[Rows];
  Kept<S> kept[Rows];
  T delta[Rows], u[Rows], z[Rows];
  // What is absent is a copy of the last row, without states: no branches between the rows.
#pragma unroll
  for (int i = 0; i < Rows; i++) slot[i] = i < rows ? static_cast<int>(s.slot(first_row + i)) : -1;
#pragma unroll
  for (int i = 0; i < Rows; i++) {
    kept[i] = {};
    if (mine && slot[i] >= 0)
      kept[i] = Kept<S>::load(s.template states<S>(slot[i]) + channel * kStates, part);
  }
#pragma unroll
  for (int i = 0; i < Rows; i++) {
    if (!mine) break;
    const int64_t row = first_row + (i < rows ? i : rows - 1);
    delta[i] = s.y[row * s.y_stride + channel];
    u[i] = s.u[row * s.u_stride + channel];
    z[i] = s.xz[row * s.xz_stride + s.d + channel];
  }
  for (int i = thread; i < Rows * 8; i += kUpdateThreads) {
    const T* row = s.dbc + (first_row + (i / 8 < rows ? i / 8 : rows - 1)) * s.dbc_stride + s.r;
    const Pack<4> some = Pack<4>::load(row + i % 8 * 4);
    coefficients[i / 8][i % 8] = {some.item[0], some.item[1], some.item[2], some.item[3]};
  }
  Share<S> A{};
  float bias = 0.0f, D = 0.0f;
  if (mine) {
    A = Share<S>::of(reinterpret_cast<const float4*>(s.A) + channel * (kStates / 4), part);
    bias = s.dt_bias[channel], D = s.D[channel];
  }
#pragma unroll
  for (int k = 0; k < 8; k++) A.item[k] *= kLog2e;
  __syncthreads();
  if (!mine) return;

#pragma unroll
  for (int i = 0; i < Rows; i++) {
    Share<S> h = kept[i].open();
    const auto B = Share<S>::of(coefficients[i], part);
    const auto C = Share<S>::of(coefficients[i] + kStates / 4, part);
    const float dt = softplus(to_float(delta[i]) + bias), now = to_float(u[i]), dtu = dt * now;
    float y[2] = {};
#pragma unroll
    for (int k = 0; k < 8; k++) {
      h.item[k] = fmaf(exp2_approx(dt * A.item[k]), h.item[k], dtu * B.item[k]);
      y[k % 2] = fmaf(h.item[k], C.item[k], y[k % 2]);
    }
    float sum = y[0] + y[1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    Dice dice{};
    if constexpr (sizeof(S) == 2) dice = Dice::of(sum, channel, part);
    if (slot[i] >= 0) keep(s.template states<S>(slot[i]) + channel * kStates, part, h, dice);
    if (part == 0 && i < rows)
      from_float(s.y[(first_row + i) * s.y_stride + channel],
                 fmaf(D, now, sum) * silu(to_float(z[i])));
  }
}

}  // namespace ss::cuda
