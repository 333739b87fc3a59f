// The gradients of causal_conv1d over sequences that start from zeros; formulas in
// native/cpu/causal_conv1d_backward.cc. Up to four taps: a thread takes two channels through a run of
// tokens, with the last taps of x and of dp in registers, and up to w - 1 tokens behind them, whose
// dp reaches back; 3 t d items move, asked for by eight tokens at a time. More taps, which no model has: a kernel each for dp, dx and the
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
constexpr int kAhead = 8;

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

template <class T, int W, int V>
__global__ void __launch_bounds__(kThreads) convolve_back(const __grid_constant__ Conv<T> s) {
  s.sequences.check();
  const int64_t c = (blockIdx.x % s.column_blocks * int64_t{kThreads} + threadIdx.x) * V;
  const int64_t number = blockIdx.x / s.column_blocks;
  if (c >= s.d) return;
  const auto run = s.sequences.piece(number, kShift);
  float weight[V][W], bias[V], sums[V][W + 1] = {}, x[V][W] = {}, dp[V][W] = {};
#pragma unroll
  for (int v = 0; v < V; v++) {
    bias[v] = s.bias ? s.bias[c + v] : 0.0f;
#pragma unroll
    for (int k = 0; k < W; k++) weight[v][k] = s.weight[(c + v) * s.weight_stride + k];
  }
  if (run.begin < run.end) {
#pragma unroll
    for (int k = 1; k < W; k++)
      if (run.begin - W + k >= run.start)
#pragma unroll
        for (int v = 0; v < V; v++) x[v][k] = to_float(s.x[(run.begin - W + k) * s.x_stride + c + v]);
    const int64_t all = run.end + W - 1;
    for (int64_t first = run.begin; first < all; first += kAhead) {
      Raw<T, V> raw_x[kAhead], raw_dy[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const int64_t t = first + i;
        if (t < all && t < run.stop) {
          raw_x[i] = *reinterpret_cast<const Raw<T, V>*>(s.x + t * s.x_stride + c);
          raw_dy[i] = *reinterpret_cast<const Raw<T, V>*>(s.dy + t * s.dy_stride + c);
        } else {
          raw_x[i] = raw_dy[i] = Raw<T, V>{};
        }
      }
      // x[k] and dp[k] are of token t - W + 1 + k.
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const int64_t t = first + i, done = t - W + 1;
        if (t >= all) break;
        Raw<T, V> dx;
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
          for (int k = 0; k + 1 < W; k++) x[v][k] = x[v][k + 1], dp[v][k] = dp[v][k + 1];
          x[v][W - 1] = to_float(raw_x[i].item[v]);
          float now = to_float(raw_dy[i].item[v]);
          if (s.silu) {
            float p = bias[v];
#pragma unroll
            for (int k = 0; k < W; k++) p = fmaf(weight[v][k], x[v][k], p);
            now *= silu_slope(p);
          }
          dp[v][W - 1] = now;
          if (t < run.end) {
#pragma unroll
            for (int k = 0; k < W; k++) sums[v][k] = fmaf(now, x[v][k], sums[v][k]);
            sums[v][W] += now;
          }
          float total = 0;
#pragma unroll
          for (int k = 0; k < W; k++) total = fmaf(weight[v][k], dp[v][W - 1 - k], total);
          from_float(dx.item[v], total);
        }
        if (done >= run.begin) *reinterpret_cast<Raw<T, V>*>(s.dx + done * s.dx_stride + c) = dx;
      }
    }
  }
#pragma unroll
  for (int k = 0; k <= W; k++)
#pragma unroll
    for (int v = 0; v < V; v++) s.parts[(number * (W + 1) + k) * s.d + c + v] = sums[v][k];
}

// dweight[c][k] and dbias[c] from all runs, kSumRows of which are added side by side.
__global__ void __launch_bounds__(32 * kSumRows)
    sum_taps(const float* parts, int64_t runs, int64_t d, int64_t w, float* dweight, int64_t stride,
             float* dbias) {
  __shared__ float sums[kSumRows][32];
  const int column = threadIdx.x % 32, side = threadIdx.x / 32;
  const int64_t at = blockIdx.x * int64_t{32} + column, width = (w + 1) * d;
  float total = 0;
#pragma unroll 8
  for (int64_t run = side; run < runs; run += kSumRows)
    if (at < width) total += parts[run * width + at];
  sums[side][column] = total;
  __syncthreads();
  if (side > 0 || at >= width) return;
#pragma unroll
  for (int i = 1; i < kSumRows; i++) total += sums[i][column];
  const int64_t k = at / d, c = at % d;
  if (k < w)
    dweight[c * stride + k] = total;
  else if (dbias)
    dbias[c] = total;
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
    const auto two = [](const void* data, int64_t stride) {
      return stride % 2 == 0 && reinterpret_cast<uintptr_t>(data) % (2 * sizeof(T)) == 0;
    };
    const bool pairs =
        s.d % 2 == 0 && two(s.x, s.x_stride) && two(s.dy, s.dy_stride) && two(s.dx, s.dx_stride);
    s.column_blocks = blocks_for(s.d / (pairs ? 2 : 1));
    const auto launch_runs = [&](auto one, auto both) {
      (pairs ? both : one)<<<static_cast<unsigned>(runs * s.column_blocks), kThreads, 0, stream.handle>>>(s);
    };
    if (s.w == 1) launch_runs(convolve_back<T, 1, 1>, convolve_back<T, 1, 2>);
    if (s.w == 2) launch_runs(convolve_back<T, 2, 1>, convolve_back<T, 2, 2>);
    if (s.w == 3) launch_runs(convolve_back<T, 3, 1>, convolve_back<T, 3, 2>);
    if (s.w == 4) launch_runs(convolve_back<T, 4, 1>, convolve_back<T, 4, 2>);
  } else {
    slopes<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    inputs<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    taps<T><<<blocks_for(width), 128, 0, stream.handle>>>(s);
  }
  sum_taps<<<static_cast<unsigned>((width + 31) / 32), 32 * kSumRows, 0, stream.handle>>>(
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
            sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t), nullptr, nullptr, 0},
           dweight, dbias);
  });
}
KERNEL(causal_conv1d_backward)

}  // namespace ss::cuda
