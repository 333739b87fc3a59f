// The gradients of s4d_scan over sequences that start from zero. Per channel and state, * conjugates:
//   g(t) = 2 W* dy(t) + (1 + E)* g(t+1),   du = sum of Re g + D dy
//   dW = 2 sum over t of dy(t) h(t)*,   dE = sum over t of g(t) h(t-1)*,   dD = sum over t of dy u
// A warp takes a channel of a sequence, its lanes the states: forward once, keeping states at the start
// of every chunk of kSteps tokens, 8 n d / kSteps bytes a token; then chunk by chunk from the last to
// the first, forward again with the states after each token in shared memory, and back. Each
// sequence's sums are added at the end, in order (row_sums.cuh). Sequences are not cut: few long ones
// leave a card idle, and a convolution is the better execution for them.
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "device/sequences.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kSteps = 32, kShift = 5, kMostWarps = 8;

template <class T>
struct Back {
  const T *u, *dy;
  T* du;
  const float *E, *W, *D;
  int64_t u_stride, dy_stride, du_stride, E_stride, W_stride, d, n;
  Sequences sequences;
  unsigned blocks;  // that the channels of a sequence take
  float2* starts;   // [chunks][d][n]
  float* parts;     // [sequences][dE: d n 2, dW: d n 2, dD: d]
  int64_t width;    // of a part
};

__device__ void advance(float2& h, float2 e, float u) {
  const float change = fmaf(-e.y, h.y, fmaf(e.x, h.x, u));
  h.y += fmaf(e.x, h.y, e.y * h.x);
  h.x += change;
}

template <class T, int States>
__global__ void __launch_bounds__(32 * kMostWarps) scan_back(const __grid_constant__ Back<T> s) {
  extern __shared__ __align__(16) float memory[];
  s.sequences.check();
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t sequence = blockIdx.x / s.blocks, first = blockIdx.x % s.blocks * int64_t{warps};
  const int64_t c = first + warp;
  float *us = memory, *dys = us + kSteps * warps, *dus = dys + kSteps * warps;  // [kSteps][warps]
  // [kSteps][States][lane], of this warp
  float2* states = reinterpret_cast<float2*>(dus + kSteps * warps) + warp * kSteps * States * 32;
  const auto piece = s.sequences.whole(sequence);
  const int64_t length = piece.end - piece.begin, chunks = (length + kSteps - 1) / kSteps;
  const auto there = [&](int i) { return c < s.d && lane + 32 * i < s.n; };
  const auto pair = [&](const float* rows, int64_t stride, int i) {
    const float* at = rows + c * stride + 2 * (lane + 32 * i);
    return there(i) ? float2{at[0], at[1]} : float2{};
  };
  float2* starts = s.starts + (s.sequences.first_piece(sequence, kShift) * s.d + c) * s.n + lane;
  const auto take = [&](const T* from, int64_t stride, int64_t t, float* to) {
    for (int i = threadIdx.x; i < kSteps * warps; i += blockDim.x) {
      const int64_t step = t + i / warps, channel = first + i % warps;
      to[i] = step < piece.end && channel < s.d ? to_float(from[step * stride + channel]) : 0.0f;
    }
  };

  float2 e[States], h[States], g[States] = {}, dE[States] = {}, dW[States] = {};
#pragma unroll
  for (int i = 0; i < States; i++) e[i] = pair(s.E, s.E_stride, i), h[i] = {};
  for (int64_t k = 0; k < chunks; k++) {
#pragma unroll
    for (int i = 0; i < States; i++)
      if (there(i)) starts[k * s.d * s.n + 32 * i] = h[i];
    if (k + 1 == chunks) break;
    __syncthreads();  // the last tokens have been read
    take(s.u, s.u_stride, piece.begin + k * kSteps, us);
    __syncthreads();
#pragma unroll 4
    for (int step = 0; step < kSteps; step++) {
      const float u = us[step * warps + warp];
#pragma unroll
      for (int i = 0; i < States; i++) advance(h[i], e[i], u);
    }
  }

  float2 out[States];  // 2 W
  float skip = 0;      // dD
#pragma unroll
  for (int i = 0; i < States; i++) {
    out[i] = pair(s.W, s.W_stride, i);
    out[i].x *= 2, out[i].y *= 2;
  }
  for (int64_t k = chunks; k-- > 0;) {
    const int64_t t = piece.begin + k * kSteps;
    __syncthreads();  // the last du has been written
    take(s.u, s.u_stride, t, us);
    take(s.dy, s.dy_stride, t, dys);
    __syncthreads();
    float2 start[States], sumE[States] = {}, sumW[States] = {};
#pragma unroll
    for (int i = 0; i < States; i++)
      h[i] = start[i] = there(i) ? starts[k * s.d * s.n + 32 * i] : float2{};
#pragma unroll 4
    for (int step = 0; step < kSteps; step++) {
      const float u = us[step * warps + warp];
#pragma unroll
      for (int i = 0; i < States; i++) {
        advance(h[i], e[i], u);
        states[(step * States + i) * 32 + lane] = h[i];
      }
    }
    // Behind a sequence dy is 0 and so is g: those steps change nothing.
#pragma unroll 4
    for (int step = kSteps - 1; step >= 0; step--) {
      const float dy = dys[step * warps + warp];
      float du = 0;
#pragma unroll
      for (int i = 0; i < States; i++) {
        const float2 before = step > 0 ? states[((step - 1) * States + i) * 32 + lane] : start[i];
        const float change = fmaf(e[i].x, g[i].x, fmaf(e[i].y, g[i].y, out[i].x * dy));
        g[i].y += fmaf(e[i].x, g[i].y, fmaf(-e[i].y, g[i].x, -out[i].y * dy));
        g[i].x += change;
        du += g[i].x;
        sumW[i].x = fmaf(dy, h[i].x, sumW[i].x);
        sumW[i].y = fmaf(-dy, h[i].y, sumW[i].y);
        sumE[i].x = fmaf(g[i].x, before.x, fmaf(g[i].y, before.y, sumE[i].x));
        sumE[i].y = fmaf(g[i].y, before.x, fmaf(-g[i].x, before.y, sumE[i].y));
        h[i] = before;
      }
      du = warp_sum(du);
      if (lane == 0) dus[step * warps + warp] = du;
    }
#pragma unroll
    for (int i = 0; i < States; i++) {
      dE[i].x += sumE[i].x, dE[i].y += sumE[i].y;
      dW[i].x += 2 * sumW[i].x, dW[i].y += 2 * sumW[i].y;
    }
    skip = fmaf(us[lane * warps + warp], dys[lane * warps + warp], skip);
    __syncthreads();
    for (int i = threadIdx.x; i < kSteps * warps; i += blockDim.x) {
      const int64_t step = t + i / warps, channel = first + i % warps;
      if (step >= piece.end || channel >= s.d) continue;
      const float du = s.D ? fmaf(s.D[channel], dys[i], dus[i]) : dus[i];
      from_float(s.du[step * s.du_stride + channel], du);
    }
  }
  skip = warp_sum(skip);
  float* part = s.parts + sequence * s.width;
#pragma unroll
  for (int i = 0; i < States; i++) {
    if (!there(i)) continue;
    float* to = part + 2 * (c * s.n + lane + 32 * i);
    to[0] = dE[i].x, to[1] = dE[i].y;
    to += 2 * s.d * s.n;
    to[0] = dW[i].x, to[1] = dW[i].y;
  }
  if (lane == 0 && c < s.d) part[4 * s.d * s.n + c] = skip;
}

template <class T, int States>
void start(Stream& stream, Back<T> s) {
  constexpr int warps = States >= kMostWarps ? 1 : kMostWarps / States;
  constexpr size_t bytes = sizeof(float) * kSteps * warps * (3 + 2 * 32 * States);
  cudaFuncSetAttribute(scan_back<T, States>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  s.blocks = static_cast<unsigned>((s.d + warps - 1) / warps);
  scan_back<T, States><<<static_cast<unsigned>(s.blocks * s.sequences.count), 32 * warps, bytes,
                         stream.handle>>>(s);
}

}  // namespace

void s4d_scan_backward(Stream& stream, In u, In E, In W, Opt D, In offsets, In dy, Out du, Out dE, Out dW,
                       Out dD) {
  const int64_t t = u.size(0), d = u.size(1), n = E.size(1), count = offsets.size(0) - 1;
  const int64_t width = d * (4 * n + 1), chunks = (t >> kShift) + count;
  const Scratch scratch(stream, 4 * (2 * chunks * d * n + count * width) + 16);
  if (!scratch.floats()) return;  // the queue reports it
  float* parts = scratch.floats() + 2 * chunks * d * n;
  if (count > 0 && d > 0)
    with_float(u.dtype(), [&](auto type) {
      using T = decltype(type);
      Back<T> s{};
      s.u = u.data<T>(), s.u_stride = u.stride();
      s.dy = dy.data<T>(), s.dy_stride = dy.stride();
      s.du = du.data<T>(), s.du_stride = du.stride();
      s.E = E.data<float>(), s.E_stride = E.stride();
      s.W = W.data<float>(), s.W_stride = W.stride();
      if (D) s.D = D.data<float>();
      s.d = d, s.n = n;
      s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t);
      s.starts = reinterpret_cast<float2*>(scratch.floats());
      s.parts = parts, s.width = width;
      if (n <= 32) return start<T, 1>(stream, s);
      if (n <= 64) return start<T, 2>(stream, s);
      if (n <= 128) return start<T, 4>(stream, s);
      start<T, 8>(stream, s);
    });
  add_parts(stream, parts, count, width, 2 * d * n, dE.data<float>());
  add_parts(stream, parts + 2 * d * n, count, width, 2 * d * n, dW.data<float>());
  if (D) add_parts(stream, parts + 4 * d * n, count, width, d, dD.data<float>());
}
KERNEL(s4d_scan_backward)

}  // namespace ss::cuda
