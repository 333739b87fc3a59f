// The gradients of causal_conv1d over sequences that start from zeros; formulas in
// native/cpu/causal_conv1d_backward.cc. Up to four taps: device/conv_backward.cuh, 3 t d items move. More
// taps, which no model has: a kernel each for dp, dx and the sums, from memory.
// conv_project_backward: of halves the product that dy lacks is made where dy is read.
#include "device/conv_backward.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {

void matmul_input_gradient(Stream& s, In dy, In weight, Opt plus, Out dx);

namespace {

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
__device__ Sequences::Piece sequence_of(const ConvBackward<T>& s, int64_t t) {
  int64_t i = 0;
  for (int64_t end = s.sequences.count; end - i > 1;) {
    const int64_t middle = (i + end) / 2;
    (s.sequences.offsets[middle] <= t ? i : end) = middle;
  }
  return s.sequences.whole(i);
}
template <class T>
__global__ void slopes(const __grid_constant__ ConvBackward<T> s) {
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
__global__ void inputs(const __grid_constant__ ConvBackward<T> s) {
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
__global__ void taps(const __grid_constant__ ConvBackward<T> s) {
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

template <class T, int W, int V, bool Silu, int Steps>
void launch_steps(Stream& stream, ConvBackward<T> s) {
  s.column_blocks = static_cast<unsigned>((s.d + 32 * V - 1) / (32 * V));
  const int64_t blocks = s.sequences.pieces(kConvTile) * s.column_blocks;
  const size_t bytes = Steps > 0 ? s.product.bytes(s.product.k) : 0;
  launch(stream.handle, convolve_back<T, W, V, Silu, Steps>,
         {static_cast<unsigned>(blocks), 32 * kConvWarps, bytes}, s);
}
template <class T, int W, int V>
void launch_tiles(Stream& stream, const ConvBackward<T>& s) {
  if constexpr (sizeof(T) == 2 && W == 4 && V == 2) {
    if (s.product.k == 80) return launch_steps<T, W, V, true, 5>(stream, s);
    if (s.product.k == 96) return launch_steps<T, W, V, true, 6>(stream, s);
    if (s.product.k == 128) return launch_steps<T, W, V, true, 8>(stream, s);
  }
  s.silu ? launch_steps<T, W, V, true, 0>(stream, s) : launch_steps<T, W, V, false, 0>(stream, s);
}
template <int V, class T>
void launch_width(Stream& stream, const ConvBackward<T>& s) {
  if (s.w == 1) launch_tiles<T, 1, V>(stream, s);
  if (s.w == 2) launch_tiles<T, 2, V>(stream, s);
  if (s.w == 3) launch_tiles<T, 3, V>(stream, s);
  if (s.w == 4) launch_tiles<T, 4, V>(stream, s);
}

template <class T>
void run(Stream& stream, ConvBackward<T> s, bool pairs, Out dweight, Out dbias) {
  const bool few = s.w <= 4;
  const int64_t width = (s.w + 1) * s.d, tokens = s.sequences.tokens;
  const int64_t tiles = few ? s.sequences.pieces(kConvTile) : 1;
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

// What both ops are given, and `product`, if there is one.
template <class T>
void start(Stream& stream, In x, In weight, Opt bias, In offsets, In dy, const ConvProduct<T>& product, bool silu,
           Out dx, Out dweight, Out dbias) {
  ConvBackward<T> s{};
  s.x = x.data<T>(), s.x_stride = x.stride();
  s.dy = dy.data<T>(), s.dy_stride = dy.stride();
  s.dx = dx.data<T>(), s.dx_stride = dx.stride();
  s.weight = weight.data<float>(), s.weight_stride = weight.stride();
  if (bias) s.bias = bias.data<float>();
  s.d = x.size(1), s.w = weight.size(1), s.silu = silu, s.wide_weight = packs<float>(weight, 4);
  s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, x.size(0));
  s.product = product;
  const bool pairs = s.d % 2 == 0 && packs<T>(x, 2) && packs<T>(dy, 2) && packs<T>(dx, 2);
  run<T>(stream, s, pairs, dweight, dbias);
}

// Whether there is nothing but zeros to leave.
bool nothing(Stream& stream, In x, In weight, Opt bias, In offsets, Out dweight, Out dbias) {
  const int64_t d = x.size(1);
  if (d > 0 && x.size(0) > 0 && offsets.size(0) >= 2) return false;
  cudaMemsetAsync(dweight.data<float>(), 0, static_cast<size_t>(d * weight.size(1)) * 4, stream.handle);
  if (bias) cudaMemsetAsync(dbias.data<float>(), 0, static_cast<size_t>(d) * 4, stream.handle);
  return true;
}

// Where the product is made on the way: for models of width 768, 1,024 and 1,536.
template <class T>
bool on_the_way(In x, In weight, In dy, In left, In matrix, bool silu, Out dx) {
  const int64_t k = left.size(1);
  return sizeof(T) == 2 && matrix.dtype() == x.dtype() && silu && weight.size(1) == 4 &&
         (k == 80 || k == 96 || k == 128) && x.size(1) % kProductChannels == 0 && packs<T>(x, 2) &&
         packs<T>(dy, 2) && packs<T>(dx, 2) && packs<T>(left, 8) && packs<T>(matrix, 8);
}

}  // namespace

void causal_conv1d_backward(Stream& stream, In x, In weight, Opt bias, In offsets, In dy, bool silu,
                            Out dx, Out dweight, Out dbias) {
  if (nothing(stream, x, weight, bias, offsets, dweight, dbias)) return;
  with_float(x.dtype(), [&](auto type) {
    start<decltype(type)>(stream, x, weight, bias, offsets, dy, {}, silu, dx, dweight, dbias);
  });
}
KERNEL(causal_conv1d_backward)

// [t, d], [d, w], [d]?, [s + 1], [t, d], [t, k], [k, d] -> [t, d], [d, w], [d]?
void conv_project_backward(Stream& stream, In x, In weight, Opt bias, In offsets, In dy, In dproduct, In projection,
                           bool silu, Out dx, Out dweight, Out dbias) {
  if (nothing(stream, x, weight, bias, offsets, dweight, dbias)) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (on_the_way<T>(x, weight, dy, dproduct, projection, silu, dx))
      return start<T>(stream, x, weight, bias, offsets, dy,
                      {dproduct.data<T>(), projection.data<T>(), dproduct.stride(), projection.stride(),
                       static_cast<int>(dproduct.size(1))},
                      silu, dx, dweight, dbias);
    const int64_t t = x.size(0), d = x.size(1);
    const Scratch scratch(stream, t * d * size_of(x.dtype()));
    if (!scratch.floats()) return;
    const View sum{scratch.floats(), {t, d}, d, 2, x.dtype()};
    matmul_input_gradient(stream, dproduct, projection, Opt{dy.view}, Out{&sum});
    start<T>(stream, x, weight, bias, offsets, In{&sum}, {}, silu, dx, dweight, dbias);
  });
}
KERNEL(conv_project_backward)

}  // namespace ss::cuda
