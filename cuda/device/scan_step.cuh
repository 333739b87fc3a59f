// The scan of sequences of one token or few, bound by memory: the state is read and written, 8 n
// bytes a channel, 16 bytes a thread and access. Lanes threads have a channel, and Rows sequences
// of it one after the other with one reading of A, but with all their loads under way together.
#pragma once
#include "scan_plan.cuh"

namespace ss::cuda {

constexpr int kStepThreads = 128;

struct Four {
  float item[4];

  // Elements n to n + 3 of a row of `size`; zeros beyond it.
  template <class T>
  __device__ static Four load(const T* row, int n, int size, bool wide) {
    Four out{};
    if (wide) {
      const Pack<4> pack = n < size ? Pack<4>::load(row + n) : Pack<4>{};
      for (int q = 0; q < 4; q++) out.item[q] = pack.item[q];
    } else {
      for (int q = 0; q < 4; q++) out.item[q] = n + q < size ? to_float(row[n + q]) : 0.0f;
    }
    return out;
  }
  __device__ void store(float* row, int n, int size, bool wide) const {
    if (wide && n < size)
      *reinterpret_cast<float4*>(row + n) = {item[0], item[1], item[2], item[3]};
    else
      for (int q = 0; q < 4; q++)
        if (n + q < size) row[n + q] = item[q];
  }
};

// A thread's share of a token: Quads times four states of a channel, at n(i) each.
template <class T, int Lanes, int Quads>
struct Token {
  float u, delta, z;
  Four B[Quads], C[Quads];

  __device__ static int n(int i) { return (i * Lanes + static_cast<int>(threadIdx.x) % Lanes) * 4; }

  __device__ static Token load(const Scan<T>& s, int64_t t, int64_t c, int64_t group) {
    const int size = static_cast<int>(s.n);
    const auto coefficients = [&](const void* x, int64_t stride, bool constant, int i) {
      if (constant)
        return Four::load(static_cast<const float*>(x) + c * stride, n(i), size, s.wide);
      const T* row = static_cast<const T*>(x) + t * stride + group * s.n;
      return Four::load(row, n(i), size, s.wide);
    };
    Token out;
    out.u = to_float(s.u[t * s.u_stride + c]);
    out.delta = to_float(s.delta[t * s.delta_stride + c]);
    out.z = s.z ? to_float(s.z[t * s.z_stride + c]) : 0.0f;
#pragma unroll
    for (int i = 0; i < Quads; i++) {
      out.B[i] = coefficients(s.B, s.B_stride, s.B_constant, i);
      out.C[i] = coefficients(s.C, s.C_stride, s.C_constant, i);
    }
    return out;
  }
};

template <class T, int Lanes, int Quads, int Rows>
__global__ void __launch_bounds__(kStepThreads) scan_tokens(const __grid_constant__ Scan<T> s) {
  using Token = ss::cuda::Token<T, Lanes, Quads>;
  s.sequences.check();
  const unsigned part = threadIdx.x % Lanes;
  const unsigned c = blockIdx.x % s.blocks * (kStepThreads / Lanes) + threadIdx.x / Lanes;
  const bool there = c < s.d;  // threads that are not stay for the sums
  const int64_t channel = there ? c : s.d - 1;
  const unsigned group = static_cast<unsigned>(channel) / static_cast<unsigned>(s.group_channels);
  const int size = static_cast<int>(s.n);

  Sequences::Piece piece[Rows];
  float* state[Rows];
  Four A[Quads], h[Rows][Quads];
  Token token[Rows];
#pragma unroll
  for (int r = 0; r < Rows; r++) {
    const int64_t i = blockIdx.x / s.blocks * Rows + r;
    piece[r] = i < s.sequences.count ? s.sequences.piece(i, kWhole) : Sequences::Piece{};
    const bool empty = piece[r].begin >= piece[r].end;
    const int64_t slot = empty ? -1 : s.sequences.slot(i);
    state[r] = slot < 0 ? nullptr : s.state + slot * s.state_stride + channel * s.n;
#pragma unroll
    for (int q = 0; q < Quads; q++)
      h[r][q] = state[r] ? Four::load(state[r], Token::n(q), size, s.wide) : Four{};
    token[r] = empty ? Token{} : Token::load(s, piece[r].begin, channel, group);
  }
#pragma unroll
  for (int q = 0; q < Quads; q++) {
    A[q] = Four::load(s.A + channel * s.A_stride, Token::n(q), size, s.wide);
    for (int k = 0; k < 4; k++) A[q].item[k] *= kLog2e;
  }
  const float bias = s.delta_bias ? s.delta_bias[channel] : 0.0f, D = s.D ? s.D[channel] : 0.0f;

#pragma unroll
  for (int r = 0; r < Rows; r++) {
    for (int64_t t = piece[r].begin; t < piece[r].end; t++) {
      if (t > piece[r].begin) token[r] = Token::load(s, t, channel, group);
      const float u = token[r].u;
      float dt = token[r].delta + bias, y = 0.0f;
      if (s.delta_softplus) dt = softplus(dt);
#pragma unroll
      for (int i = 0; i < Quads; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
          float& state = h[r][i].item[k];
          state = fmaf(exp2_approx(dt * A[i].item[k]), state, dt * u * token[r].B[i].item[k]);
          y = fmaf(state, token[r].C[i].item[k], y);
        }
#pragma unroll
      for (int lane = Lanes / 2; lane > 0; lane /= 2) y += __shfl_xor_sync(0xffffffffu, y, lane);
      if (part != 0 || !there) continue;
      y = fmaf(D, u, y);
      if (s.z) y *= silu(token[r].z);
      from_float(s.y[t * s.y_stride + channel], y);
    }
    if (!state[r] || !there) continue;
#pragma unroll
    for (int i = 0; i < Quads; i++) h[r][i].store(state[r], Token::n(i), size, s.wide);
  }
}

}  // namespace ss::cuda
