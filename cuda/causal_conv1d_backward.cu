// The gradients of causal_conv1d over sequences that start from zeros; formulas in
// native/cpu/causal_conv1d_backward.cc. Up to four taps: a warp takes 64 channels through a run of
// tokens, two a thread, with the last taps of x and of dp in registers, and up to w - 1 tokens behind
// them, whose dp reaches back. 3 t d items move; kBatch tokens are asked for while as many are worked
// on. A block has the runs of a tile, and adds their sums. More taps, which no model has: a kernel
// each for dp, dx and the sums, from memory.
#include "device/activation.cuh"
#include "device/pack.cuh"
#include "device/words.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRun = 6, kTile = kRun + 2;  // tokens of a warp and of a block, as shifts
constexpr int kBatch = 4;                  // at least w - 1

template <class T>
struct Conv {
  const T *x, *dy;  // [t, d]
  T* dx;
  int64_t x_stride, dy_stride, dx_stride;
  const float *weight, *bias;  // [d, w], [d] or null
  int64_t weight_stride, d, w;
  bool silu, wide_weight;
  Sequences sequences;
  float* parts;  // [tiles, w + 1, d]: sums of dweight and dbias over a tile
  float* dp;     // [t, d], for more taps
  unsigned column_blocks;  // of a tile
};

__device__ inline float silu_slope(float x) {
  const float gate = reciprocal_approx(1.0f + exp2_approx(x * -kLog2e));
  return gate * fmaf(x, 1.0f - gate, 1.0f);
}

// A thread's way through its run. What it has of token t: dp = dy silu'(p), p from x of W tokens.
template <class T, int W, int V, bool Silu>
struct Walk {
  static constexpr int H = W - 1, B = kBatch;
  using Items = Words<T, V>;
  const Conv<T>& s;
  const T *x_at, *dy_at;  // of the token that is asked for next
  T* dx_at;
  int asked = 0, bound, left;  // tokens from the run's first on; there are `bound`
  float weight[V][W], bias[V], sums[W + 1][V] = {};
  Items x[H + B], in_x[B], in_dy[B];
  float dp[H + B][V];

  // The run's `length` tokens from `begin` on, of a sequence from `start` to `stop`.
  __device__ __forceinline__ Walk(const Conv<T>& s, const Sequences::Piece& piece, int64_t begin,
                                  int length, int64_t c)
      : s(s),
        x_at(s.x + begin * s.x_stride + c),
        dy_at(s.dy + begin * s.dy_stride + c),
        dx_at(s.dx + begin * s.dx_stride + c),
        bound(static_cast<int>(min(piece.stop - begin, int64_t{length + H}))),
        left(length) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float* from = s.weight + (c + v) * s.weight_stride;
      bias[v] = s.bias ? s.bias[c + v] : 0.0f;
      if (W == 4 && s.wide_weight) {
        const Pack<4> four = Pack<4>::load(from);
#pragma unroll
        for (int k = 0; k < W; k++) weight[v][k] = four.item[k];
      } else {
#pragma unroll
        for (int k = 0; k < W; k++) weight[v][k] = from[k];
      }
    }
    // dp of the first w - 1 tokens: those of a batch are w - 1 ahead of its dx.
    Items early[H + B], dy[B];
#pragma unroll
    for (int i = 0; i < H; i++) {
      early[i] = Items{};
      if (begin - piece.start >= H - i) early[i] = Items::load(x_at - (H - i) * s.x_stride);
    }
    fetch<H>(early + H, dy);
    fetch<B>(in_x, in_dy);
#pragma unroll
    for (int i = 0; i < H; i++) {
      slope(early + i, dy[i], i < length, dp[i]);
      x[i] = early[H + i];
    }
  }

  template <int Count>
  __device__ __forceinline__ void fetch(Items* to_x, Items* to_dy) {
    const bool all = asked + Count <= bound;
#pragma unroll
    for (int j = 0; j < Count; j++) {
      to_x[j] = to_dy[j] = Items{};
      if (all || asked + j < bound) to_x[j] = Items::load(x_at), to_dy[j] = Items::load(dy_at);
      x_at += s.x_stride, dy_at += s.dy_stride;
    }
    asked += Count;
  }

  // `window`: x of W tokens, of which the last is dp's. Within the run it `counts` for the sums.
  __device__ __forceinline__ void slope(const Items* window, const Items& dy, bool counts, float (&out)[V]) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      float now = dy[v];
      if constexpr (Silu) {
        float p = bias[v];
#pragma unroll
        for (int k = 0; k < W; k++) p = fmaf(weight[v][k], window[k][v], p);
        now *= silu_slope(p);
      }
      out[v] = now;
      if (!counts) continue;
#pragma unroll
      for (int k = 0; k < W; k++) sums[k][v] = fmaf(now, window[k][v], sums[k][v]);
      sums[W][v] += now;
    }
  }

  // dx of a batch. All: it and the tokens behind it lie within the run.
  template <bool All>
  __device__ __forceinline__ void step() {
    Items dy[B];
#pragma unroll
    for (int j = 0; j < B; j++) x[H + j] = in_x[j], dy[j] = in_dy[j];
    if (All || left > B) fetch<B>(in_x, in_dy);
#pragma unroll
    for (int j = 0; j < B; j++) {
      slope(x + j, dy[j], All || H + j < left, dp[H + j]);
      Pack<V> dx;
#pragma unroll
      for (int v = 0; v < V; v++) {
        float total = weight[v][0] * dp[j + H][v];
#pragma unroll
        for (int k = 1; k < W; k++) total = fmaf(weight[v][k], dp[j + H - k][v], total);
        dx.item[v] = total;
      }
      if (All || j < left) dx.store(dx_at);
      dx_at += s.dx_stride;
    }
#pragma unroll
    for (int i = 0; i < H; i++) {
      x[i] = x[B + i];
#pragma unroll
      for (int v = 0; v < V; v++) dp[i][v] = dp[B + i][v];
    }
    left -= B;
  }
};

// As many blocks at once as hold their windows in registers.
template <class T, int W, int V, bool Silu>
__global__ void __launch_bounds__(32 * kWarps, sizeof(T) < 4 ? 6 : 5) convolve_back(const __grid_constant__ Conv<T> s) {
  constexpr int columns = 32 * V;
  __shared__ __align__(16) float of_warp[kWarps][W + 1][columns];
  let_next_start();
  wait_for_previous();
  s.sequences.check();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t number = blockIdx.x / s.column_blocks;
  const int64_t first = blockIdx.x % s.column_blocks * int64_t{columns}, c = first + lane * V;
  const auto tile = s.sequences.piece_by_warp(number, kTile);
  const int64_t begin = tile.begin + (warp << kRun);
  const int length = static_cast<int>(min(tile.end - begin, int64_t{1} << kRun));
  Pack<V> sums[W + 1] = {};
  if (c < s.d && length > 0) {
    Walk<T, W, V, Silu> walk(s, tile, begin, length, c);
    while (walk.left >= kBatch + W - 1) walk.template step<true>();
    while (walk.left > 0) walk.template step<false>();
#pragma unroll
    for (int k = 0; k <= W; k++)
#pragma unroll
      for (int v = 0; v < V; v++) sums[k].item[v] = walk.sums[k][v];
  }
#pragma unroll
  for (int k = 0; k <= W; k++) sums[k].store(&of_warp[warp][k][lane * V]);
  __syncthreads();
  for (int o = threadIdx.x; o < (W + 1) * columns; o += 32 * kWarps) {
    const int k = o / columns, column = o % columns;
    float total = of_warp[0][k][column];
#pragma unroll
    for (int i = 1; i < kWarps; i++) total += of_warp[i][k][column];
    if (first + column < s.d) s.parts[(number * (W + 1) + k) * s.d + first + column] = total;
  }
}

// dweight[c][k] and dbias[c] from all tiles, kSumRows of which are added side by side.
__global__ void __launch_bounds__(32 * kSumRows)
    sum_taps(const float* parts, int64_t tiles, int64_t d, int64_t w, float* dweight, int64_t stride,
             float* dbias) {
  __shared__ float sums[kSumRows][32];
  let_next_start();
  wait_for_previous();
  const int column = threadIdx.x % 32, side = threadIdx.x / 32;
  const int64_t at = blockIdx.x * int64_t{32} + column, width = (w + 1) * d;
  float total = 0;
#pragma unroll 8
  for (int64_t tile = side; tile < tiles; tile += kSumRows)
    if (at < width) total += parts[tile * width + at];
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

template <class T, int W, int V>
void launch_tiles(Stream& stream, Conv<T> s) {
  s.column_blocks = static_cast<unsigned>((s.d + 32 * V - 1) / (32 * V));
  const int64_t blocks = s.sequences.pieces(kTile) * s.column_blocks;
  launch(stream.handle, s.silu ? convolve_back<T, W, V, true> : convolve_back<T, W, V, false>,
         {static_cast<unsigned>(blocks), 32 * kWarps}, s);
}
template <int V, class T>
void launch_width(Stream& stream, const Conv<T>& s) {
  if (s.w == 1) launch_tiles<T, 1, V>(stream, s);
  if (s.w == 2) launch_tiles<T, 2, V>(stream, s);
  if (s.w == 3) launch_tiles<T, 3, V>(stream, s);
  if (s.w == 4) launch_tiles<T, 4, V>(stream, s);
}

template <class T>
void run(Stream& stream, Conv<T> s, bool pairs, Out dweight, Out dbias) {
  const bool few = s.w <= 4;
  const int64_t width = (s.w + 1) * s.d, tokens = s.sequences.tokens;
  const int64_t tiles = few ? s.sequences.pieces(kTile) : 1;
  const Scratch scratch(stream, (tiles * width + (few ? 0 : tokens * s.d)) * 4 + 16);
  if (!scratch.floats()) return;
  s.parts = scratch.floats(), s.dp = s.parts + tiles * width;
  if (few && pairs) {
    launch_width<2>(stream, s);
  } else if (few) {
    launch_width<1>(stream, s);
  } else {
    slopes<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    inputs<T><<<blocks_for(tokens * s.d), 128, 0, stream.handle>>>(s);
    taps<T><<<blocks_for(width), 128, 0, stream.handle>>>(s);
  }
  launch(stream.handle, sum_taps, {static_cast<unsigned>((width + 31) / 32), 32 * kSumRows}, s.parts, tiles,
         s.d, s.w, dweight.data<float>(), dweight.stride(), s.bias ? dbias.data<float>() : nullptr);
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
    Conv<T> s{};
    s.x = x.data<T>(), s.x_stride = x.stride();
    s.dy = dy.data<T>(), s.dy_stride = dy.stride();
    s.dx = dx.data<T>(), s.dx_stride = dx.stride();
    s.weight = weight.data<float>(), s.weight_stride = weight.stride();
    if (bias) s.bias = bias.data<float>();
    s.d = d, s.w = w, s.silu = silu, s.wide_weight = packs<float>(weight, 4);
    s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t);
    const bool pairs = d % 2 == 0 && packs<T>(x, 2) && packs<T>(dy, 2) && packs<T>(dx, 2);
    run<T>(stream, s, pairs, dweight, dbias);
  });
}
KERNEL(causal_conv1d_backward)

}  // namespace ss::cuda
