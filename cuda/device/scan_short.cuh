// The scan of short sequences: a thread has a channel with all of its states in registers, a block
// kShortThreads channels of one sequence. Nothing is shared but B and C, so that a sequence costs no
// start and no end of a pipeline; with enough sequences other blocks hide what a thread waits for.
#pragma once
#include "scan_plan.cuh"

namespace ss::cuda {

constexpr int kShortThreads = 128, kShortStates = 16;
constexpr int kShortTokens = 32;  // of B and C that are in shared memory at a time
constexpr int kShortAhead = 4;    // tokens whose inputs are asked for together

template <class T>
__global__ void __launch_bounds__(kShortThreads, 5) scan_short(const __grid_constant__ Scan<T> s) {
  constexpr int N = kShortStates;
  __shared__ float factors[kShortTokens][2 * N];
  s.sequences.check();
  const auto piece = s.sequences.piece(blockIdx.x / s.blocks, kWhole);
  const int tokens = static_cast<int>(piece.end - piece.begin);
  if (tokens <= 0) return;
  const int64_t slot = s.sequences.slot(piece.sequence);
  const unsigned block = blockIdx.x % s.blocks;
  const int64_t group = block / s.group_blocks;
  const int64_t own = int64_t{block % s.group_blocks} * kShortThreads + threadIdx.x;
  const bool there = own < s.group_channels;  // threads that are not stay for B and C
  const int64_t c = group * s.group_channels + (there ? own : 0);
  float* state = slot < 0 || !there ? nullptr : s.state + slot * s.state_stride + c * N;

  float A[N], h[N];
#pragma unroll
  for (int n = 0; n < N; n += 4) {
    const auto four = Pack<4>::load(s.A + c * s.A_stride + n);
    const auto kept = state ? Pack<4>::load(state + n) : Pack<4>{};
#pragma unroll
    for (int k = 0; k < 4; k++) A[n + k] = four.item[k] * kLog2e, h[n + k] = kept.item[k];
  }
  const float bias = s.delta_bias ? s.delta_bias[c] : 0.0f, D = s.D ? s.D[c] : 0.0f;
  const T* u = s.u + piece.begin * s.u_stride + c;
  const T* delta = s.delta + piece.begin * s.delta_stride + c;
  const T* z = s.z ? s.z + piece.begin * s.z_stride + c : nullptr;
  T* y = s.y + piece.begin * s.y_stride + c;
  const T* B = static_cast<const T*>(s.B) + piece.begin * s.B_stride + group * N;
  const T* C = static_cast<const T*>(s.C) + piece.begin * s.C_stride + group * N;

  for (int first = 0; first < tokens; first += kShortTokens) {
    const int count = smaller(tokens - first, kShortTokens);
    if (first > 0) __syncthreads();
    for (int i = threadIdx.x; i < count * N; i += kShortThreads) {
      const int64_t t = first + i / N;
      factors[i / N][i % N] = to_float(B[t * s.B_stride + i % N]);
      factors[i / N][N + i % N] = to_float(C[t * s.C_stride + i % N]);
    }
    __syncthreads();
    if (!there) continue;
    for (int i = 0; i < count; i += kShortAhead) {
      float us[kShortAhead], deltas[kShortAhead], zs[kShortAhead];
#pragma unroll
      for (int j = 0; j < kShortAhead; j++) {
        const int64_t t = first + smaller(i + j, count - 1);
        us[j] = to_float(u[t * s.u_stride]);
        deltas[j] = to_float(delta[t * s.delta_stride]);
        zs[j] = z ? to_float(z[t * s.z_stride]) : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kShortAhead; j++) {
        if (i + j >= count) break;
        float dt = deltas[j] + bias, sum = 0.0f;
        if (s.delta_softplus) dt = softplus_for<T>(dt);
        const float dtu = dt * us[j];
#pragma unroll
        for (int n = 0; n < N; n += 4) {
          const auto b = Pack<4>::load(&factors[i + j][n]);
          const auto f = Pack<4>::load(&factors[i + j][N + n]);
#pragma unroll
          for (int k = 0; k < 4; k++) {
            h[n + k] = fmaf(exp2_approx(dt * A[n + k]), h[n + k], dtu * b.item[k]);
            sum = fmaf(h[n + k], f.item[k], sum);
          }
        }
        sum = fmaf(D, us[j], sum);
        if (z) sum *= silu(zs[j]);
        from_float(y[(first + i + j) * s.y_stride], sum);
      }
    }
  }
  if (!state) return;
#pragma unroll
  for (int n = 0; n < N; n += 4)
    *reinterpret_cast<float4*>(state + n) = {h[n], h[n + 1], h[n + 2], h[n + 3]};
}

}  // namespace ss::cuda
