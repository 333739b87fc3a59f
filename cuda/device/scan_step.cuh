// The scan of sequences of one token or few, bound by memory: A and the state are read and the state
// is written once, 12 n bytes a channel, 16 bytes a thread and access. Lanes threads have a channel.
#pragma once
#include "scan.cuh"

namespace ss::cuda {

struct Four {
  float item[4];

  // Elements n to n + 3 of a row of `size`; zeros beyond it.
  template <class T>
  __device__ static Four load(const T* row, int64_t n, int64_t size, bool wide) {
    Four out{};
    if (wide) {
      const Pack<4> pack = n < size ? Pack<4>::load(row + n) : Pack<4>{};
      for (int q = 0; q < 4; q++) out.item[q] = pack.item[q];
    } else {
      for (int q = 0; q < 4; q++) out.item[q] = n + q < size ? to_float(row[n + q]) : 0.0f;
    }
    return out;
  }
};

// B or C of channel c at token t.
template <class T>
__device__ Four coefficients(const Scan<T>& s, const void* x, int64_t stride, bool constant, int64_t c,
                             int64_t t, int64_t n) {
  if (constant) return Four::load(static_cast<const float*>(x) + c * stride, n, s.n, s.wide);
  const T* row = static_cast<const T*>(x) + t * stride + c / s.group_channels * s.n;
  return Four::load(row, n, s.n, s.wide);
}

constexpr int kStepThreads = 128;

// A thread has Quads times four states of its channel.
template <class T, int Lanes, int Quads>
__global__ void __launch_bounds__(kStepThreads) scan_tokens(const __grid_constant__ Scan<T> s) {
  s.sequences.check();
  constexpr int width = kStepThreads / Lanes;
  const auto piece = s.sequences.piece(blockIdx.x / s.blocks, s.sequences.tokens + 1);
  const int64_t c = blockIdx.x % s.blocks * width + threadIdx.x / Lanes;
  const int part = threadIdx.x % Lanes;
  const bool there = c < s.d;  // threads that are not stay for the sums
  const int64_t channel = there ? c : s.d - 1, slot = s.sequences.slot(piece.sequence);
  if (piece.begin >= piece.end) return;

  float* state = slot < 0 ? nullptr : s.state + slot * s.state_stride + channel * s.n;
  Four A[Quads], h[Quads];
#pragma unroll
  for (int i = 0; i < Quads; i++) {
    const int64_t n = (i * Lanes + part) * 4;
    h[i] = state ? Four::load(state, n, s.n, s.wide) : Four{};
    A[i] = Four::load(s.A + channel * s.A_stride, n, s.n, s.wide);
  }
  const float bias = s.delta_bias ? s.delta_bias[channel] : 0.0f, D = s.D ? s.D[channel] : 0.0f;
  for (int64_t t = piece.begin; t < piece.end; t++) {
    const float u = to_float(s.u[t * s.u_stride + channel]);
    float dt = to_float(s.delta[t * s.delta_stride + channel]) + bias;
    if (s.delta_softplus) dt = softplus(dt);
    float y = 0.0f;
#pragma unroll
    for (int i = 0; i < Quads; i++) {
      const int64_t n = (i * Lanes + part) * 4;
      const Four B = coefficients(s, s.B, s.B_stride, s.B_constant, channel, t, n);
      const Four C = coefficients(s, s.C, s.C_stride, s.C_constant, channel, t, n);
#pragma unroll
      for (int q = 0; q < 4; q++) {
        const float e = exp2_approx(dt * (A[i].item[q] * kLog2e));
        h[i].item[q] = fmaf(e, h[i].item[q], dt * u * B.item[q]);
        y = fmaf(h[i].item[q], C.item[q], y);
      }
    }
#pragma unroll
    for (int lane = Lanes / 2; lane > 0; lane /= 2) y += __shfl_xor_sync(0xffffffffu, y, lane);
    if (part != 0 || !there) continue;
    y = fmaf(D, u, y);
    if (s.z) y *= silu(to_float(s.z[t * s.z_stride + channel]));
    from_float(s.y[t * s.y_stride + channel], y);
  }
  if (!state || !there) return;
#pragma unroll
  for (int i = 0; i < Quads; i++) {
    const int64_t n = (i * Lanes + part) * 4;
    if (s.wide && n < s.n)
      *reinterpret_cast<float4*>(state + n) = {h[i].item[0], h[i].item[1], h[i].item[2], h[i].item[3]};
    else
      for (int q = 0; q < 4; q++)
        if (n + q < s.n) state[n + q] = h[i].item[q];
  }
}

}  // namespace ss::cuda
