// The gradients of causal_conv1d over sequences that start from zeros; formulas in
// native/cpu/causal_conv1d_backward.cc. Up to four taps: a thread takes one channel through kRun
// tokens, with the last taps of x and of dp in registers, and up to w - 1 tokens behind them, whose
// dp reaches back; 3 t d items move. More taps, which no model has: a kernel each for dp, dx and the
// sums, from memory.
#include "device/activation.cuh"
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kShift = 6;  // a run has 64 tokens

template <class T>
struct Conv {
  const T *x, *dy;  // [t, d]
  T* dx;
  int64_t x_stride, dy_stride, dx_stride;
  const float *weight, *bias;  // [d, w], [d] or null
  int64_t weight_stride, d, w;
  bool silu;
  Sequences sequences;
  float* parts;  // [runs, w + 1, d]: sums of dweight and dbias over a run
  float* dp;     // [t, d], for more taps
  unsigned column_blocks;  // of a run
};

__device__ inline float silu_slope(float x) {
  const float gate = reciprocal_approx(1.0f + exp2_approx(x * -kLog2e));
  return gate * fmaf(x, 1.0f - gate, 1.0f);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) convolve_back(const __grid_constant__ Conv<T> s) {
  s.sequences.check();
  const int64_t c = blockIdx.x % s.column_blocks * int64_t{kThreads} + threadIdx.x;
  const int64_t number = blockIdx.x / s.column_blocks;
  if (c >= s.d) return;
  const auto run = s.sequences.piece(number, kShift);
  float weight[W], sums[W + 1] = {}, x[W] = {}, dp[W] = {};
#pragma unroll
  for (int k = 0; k < W; k++) weight[k] = s.weight[c * s.weight_stride + k];
  const float bias = s.bias ? s.bias[c] : 0.0f;
  if (run.begin < run.end) {
#pragma unroll
    for (int k = 1; k < W; k++)
      if (run.begin - W + k >= run.start) x[k] = to_float(s.x[(run.begin - W + k) * s.x_stride + c]);
    // x[k] and dp[k] are of token t - W + 1 + k.
#pragma unroll 4
    for (int64_t t = run.begin; t < run.end + W - 1; t++) {
#pragma unroll
      for (int k = 0; k + 1 < W; k++) x[k] = x[k + 1], dp[k] = dp[k + 1];
      x[W - 1] = t < run.stop ? to_float(s.x[t * s.x_stride + c]) : 0.0f;
      float now = t < run.stop ? to_float(s.dy[t * s.dy_stride + c]) : 0.0f;
      if (s.silu) {
        float p = bias;
#pragma unroll
        for (int k = 0; k < W; k++) p = fmaf(weight[k], x[k], p);
        now *= silu_slope(p);
      }
      dp[W - 1] = now;
      if (t < run.end) {
#pragma unroll
        for (int k = 0; k < W; k++) sums[k] = fmaf(now, x[k], sums[k]);
        sums[W] += now;
      }
      const int64_t done = t - W + 1;
      if (done < run.begin) continue;
      float total = 0;
#pragma unroll
      for (int k = 0; k < W; k++) total = fmaf(weight[k], dp[W - 1 - k], total);
      from_float(s.dx[done * s.dx_stride + c], total);
    }
  }
#pragma unroll
  for (int k = 0; k <= W; k++) s.parts[(number * (W + 1) + k) * s.d + c] = sums[k];
}

// dweight[c][k] and dbias[c] from all runs.
__global__ void sum_taps(const float* parts, int64_t runs, int64_t d, int64_t w, float* dweight,
                         int64_t stride, float* dbias) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, width = (w + 1) * d;
  if (at >= width) return;
  float total[4] = {};
  for (int64_t run = 0; run < runs; run += 4)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (run + i < runs) total[i] += parts[(run + i) * width + at];
  const float sum = (total[0] + total[1]) + (total[2] + total[3]);
  const int64_t k = at / d, c = at % d;
  if (k < w)
    dweight[c * stride + k] = sum;
  else if (dbias)
    dbias[c] = sum;
}

// Any number of taps. Sequences are looked up by token.
template <class T>
__device__ Sequences::Piece sequence_of(const Conv<T>& s, int64_t t) {
  int64_t i = 0;
  for (int64_t end = s.sequences.count; end - i > 1;) {
    const int64_t middle = (i + end) / 2;
    (s.sequences.offsets[middle] <= t ? i : end) = middle;
  }
  return s.sequences.whole(i);
}
template <class T>
__global__ void slopes(const __grid_constant__ Conv<T> s) {
  s.sequences.check();
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, t = at / s.d, c = at % s.d;
  if (t >= s.sequences.tokens) return;
  const auto own = sequence_of(s, t);
  float p = s.bias ? s.bias[c] : 0.0f;
  for (int64_t k = 0; k < s.w && s.silu; k++)
    if (t - s.w + 1 + k >= own.start)
      p = fmaf(s.weight[c * s.weight_stride + k], to_float(s.x[(t - s.w + 1 + k) * s.x_stride + c]), p);
  s.dp[at] = to_float(s.dy[t * s.dy_stride + c]) * (s.silu ? silu_slope(p) : 1.0f);
}
template <class T>
__global__ void inputs(const __grid_constant__ Conv<T> s) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, t = at / s.d, c = at % s.d;
  if (t >= s.sequences.tokens) return;
  const auto own = sequence_of(s, t);
  float total = 0;
  for (int64_t k = 0; k < s.w; k++)
    if (const int64_t to = t + s.w - 1 - k; to < own.stop)
      total = fmaf(s.weight[c * s.weight_stride + k], s.dp[to * s.d + c], total);
  from_float(s.dx[t * s.dx_stride + c], total);
}
template <class T>
__global__ void taps(const __grid_constant__ Conv<T> s) {
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, k = at / s.d, c = at % s.d;
  if (k > s.w) return;
  double total = 0;
  for (int64_t i = 0; i < s.sequences.count; i++) {
    const auto own = s.sequences.whole(i);
    for (int64_t t = own.start; t < own.stop; t++) {
      const int64_t from = k == s.w ? t : t - s.w + 1 + k;
      if (from < own.start) continue;
      const float x = k == s.w ? 1.0f : to_float(s.x[from * s.x_stride + c]);
      total += static_cast<double>(s.dp[t * s.d + c]) * x;
    }
  }
  s.parts[at] = static_cast<float>(total);
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + 127) / 128); }

template <class T>
void run(Stream& stream, Conv<T> s, Out dweight, Out dbias) {
  const bool few = s.w <= 4;
  const int64_t width = (s.w + 1) * s.d, tokens = s.sequences.tokens;
  const int64_t runs = few ? s.sequences.pieces(kShift) : 1;
  const Scratch scratch(stream, (runs * width + (few ? 0 : tokens * s.d)) * 4 + 16);
  if (!scratch.floats()) return;
  s.parts = scratch.floats(), s.dp = s.parts + runs * width;
  if (few) {
    const auto launch_runs = [&](auto kernel) {
      kernel<<<static_cast<unsigned>(runs * s.column_blocks), kThreads, 0, stream.handle>>>(s);
    };
    if (s.w == 1) launch_runs(convolve_back<T, 1>);
    if (s.w == 2) launch_runs(convolve_back<T, 2>);
    if (s.w == 3) launch_runs(convolve_back<T, 3>);
    if (s.w == 4) launch_runs(convolve_back<T, 4>);
  } else {
    slopes<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    inputs<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    taps<T><<<blocks_for(width), 128, 0, stream.handle>>>(s);
  }
  sum_taps<<<blocks_for(width), 128, 0, stream.handle>>>(
      s.parts, runs, s.d, s.w, dweight.data<float>(), dweight.stride(),
      s.bias ? dbias.data<float>() : nullptr);
}

}  // namespace

void causal_conv1d_backward(Stream& stream, In x, In weight, Opt bias, In offsets, In dy, bool silu,
                            Out dx, Out dweight, Out dbias) {
  const int64_t t = x.size(0), d = x.size(1), w = weight.size(1);
  if (d == 0) return;
  if (t == 0 || offsets.size(0) < 2) {
    cudaMemsetAsync(dweight.data<float>(), 0, static_cast<size_t>(d * w) * 4, stream.handle);
    if (bias) cudaMemsetAsync(dbias.data<float>(), 0, static_cast<size_t>(d) * 4, stream.handle);
    return;
  }
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    run<T>(stream,
           {x.data<T>(), dy.data<T>(), dx.data<T>(), x.stride(), dy.stride(), dx.stride(),
            weight.data<float>(), bias ? bias.data<float>() : nullptr, weight.stride(), d, w, silu,
            sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t), nullptr, nullptr, blocks_for(d)},
           dweight, dbias);
  });
}
KERNEL(causal_conv1d_backward)

}  // namespace ss::cuda
