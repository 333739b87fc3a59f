// The gradients of causal_conv1d over sequences that start from zeros, up to four taps: a warp takes 64
// channels through a run of tokens, two a thread, with the last taps of x and of dp in registers, and up to
// w - 1 tokens behind them, whose dp reaches back. kBatch tokens are asked for while as many are worked
// on. A block has the runs of a tile, and adds their sums. What dy lacks, a matrix product of few columns,
// can be made by the block before it begins (conv_product.cuh).
#pragma once
#include "activation.cuh"
#include "conv_product.cuh"
#include "dependent.cuh"
#include "pack.cuh"
#include "sequences.cuh"
#include "words.cuh"

namespace ss::cuda {

constexpr int kConvWarps = 4;
constexpr int kConvRun = 6, kConvTile = kConvRun + 2;  // tokens of a warp and of a block, as shifts
constexpr int kConvBatch = 4;                          // at least w - 1

template <class T>
struct ConvBackward {
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
  ConvProduct<T> product;  // of dy, if it is asked for
};

__device__ inline float silu_slope(float x) {
  const float gate = reciprocal_approx(1.0f + exp2_approx(x * -kLog2e));
  return gate * fmaf(x, 1.0f - gate, 1.0f);
}

// A thread's way through its run. What it has of token t: dp = dy silu'(p), p from x of W tokens.
template <class T, int W, int V, bool Silu, bool Product>
struct ConvWalk {
  static constexpr int H = W - 1, B = kConvBatch;
  using Items = Words<T, V>;
  const ConvBackward<T>& s;
  const T *x_at, *dy_at;  // of the token that is asked for next
  T* dx_at;
  int asked = 0, bound, left;  // tokens from the run's first on; there are `bound`
  const T* more_at;  // what is to be added to dy of the token that is next, if there is something
  float weight[V][W], bias[V], sums[W + 1][V] = {};
  Items x[H + B], in_x[B], in_dy[B];
  float dp[H + B][V];

  // The run's `length` tokens from `begin` on, of a sequence from `start` to `stop`.
  __device__ __forceinline__ ConvWalk(const ConvBackward<T>& s, const Sequences::Piece& piece, int64_t begin,
                                      int length, int64_t c, const T* more)
      : s(s),
        x_at(s.x + begin * s.x_stride + c),
        dy_at(s.dy + begin * s.dy_stride + c),
        dx_at(s.dx + begin * s.dx_stride + c),
        bound(static_cast<int>(min(piece.stop - begin, int64_t{length + H}))),
        left(length),
        more_at(more) {
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
    Items more;
    if constexpr (Product) more = Items::load(more_at), more_at += kProductPitch;
#pragma unroll
    for (int v = 0; v < V; v++) {
      float now = dy[v];
      if constexpr (Product) now += more[v];
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

// As many blocks at once as hold their windows in registers. `Steps`: 16 columns each of the product that dy lacks.
template <class T, int W, int V, bool Silu, int Steps>
__global__ void __launch_bounds__(32 * kConvWarps, sizeof(T) < 4 ? 6 : 5)
    convolve_back(const __grid_constant__ ConvBackward<T> s) {
  constexpr int columns = 32 * V;
  constexpr bool kProduct = Steps > 0;
  __shared__ __align__(16) float of_warp[kProduct ? 1 : kConvWarps][W + 1][columns];
  extern __shared__ __align__(16) unsigned char memory[];
  let_next_start();
  wait_for_previous();
  s.sequences.check();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t number = blockIdx.x / s.column_blocks;
  const int64_t first = blockIdx.x % s.column_blocks * int64_t{columns}, c = first + lane * V;
  const auto tile = s.sequences.piece_by_warp(number, kConvTile);
  const int64_t begin = tile.begin + (warp << kConvRun);
  const int length = static_cast<int>(min(tile.end - begin, int64_t{1} << kConvRun));
  T* own = nullptr;  // the product of the warp's tokens
  if constexpr (kProduct) {
    const int64_t tokens = min(tile.stop - tile.begin, int64_t{(1 << kConvTile) + W - 1});
    T* product = reinterpret_cast<T*>(memory);
    make_product<Steps>(s.product, tile.begin, static_cast<int>(tokens), first, product);
    own = product + (warp << kConvRun) * kProductPitch;
  }
  Pack<V> sums[W + 1] = {};
  if (c < s.d && length > 0) {
    ConvWalk<T, W, V, Silu, kProduct> walk(s, tile, begin, length, c, own + lane * V);
    while (walk.left >= kConvBatch + W - 1) walk.template step<true>();
    while (walk.left > 0) walk.template step<false>();
#pragma unroll
    for (int k = 0; k <= W; k++)
#pragma unroll
      for (int v = 0; v < V; v++) sums[k].item[v] = walk.sums[k][v];
  }
  // With a product where that of tokens was which no other warp reads.
  const auto sums_of = [&](int i, int k) {
    if constexpr (kProduct)
      return reinterpret_cast<float*>(memory + ((i << kConvRun) + 8) * kProductPitch * sizeof(T)) + k * columns;
    else
      return &of_warp[i][k][0];
  };
  __syncwarp();
#pragma unroll
  for (int k = 0; k <= W; k++) sums[k].store(sums_of(warp, k) + lane * V);
  __syncthreads();
  for (int o = threadIdx.x; o < (W + 1) * columns; o += 32 * kConvWarps) {
    const int k = o / columns, column = o % columns;
    float total = sums_of(0, k)[column];
#pragma unroll
    for (int i = 1; i < kConvWarps; i++) total += sums_of(i, k)[column];
    if (first + column < s.d) s.parts[(number * (W + 1) + k) * s.d + first + column] = total;
  }
}

}  // namespace ss::cuda
