// y = x * rsqrt(mean(x^2) + eps) * weight over the last dimension, of x or of x + residual.
// One block a row, neighbouring threads on neighbouring packs of up to 16 bytes. A row is read from
// memory once and stays in registers, if they hold it: t*d*(sizeof(X) + sizeof(Y)) bytes move, and
// with the residual 8*t*d more.
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

template <class X>
struct Plain {  // the row is x
  const X* x;
  int64_t stride;

  template <int N>
  __device__ Pack<N> first(int64_t i, int64_t j) const {
    return Pack<N>::load(x + i * stride + j);
  }
  template <int N>
  __device__ Pack<N> again(int64_t i, int64_t j) const {
    return first<N>(i, j);
  }
};

template <class X>
struct Added {  // the row is x + residual, written to total on the way
  const X* x;
  const float* residual;
  float* total;
  int64_t stride, residual_stride, total_stride;

  template <int N>
  __device__ Pack<N> first(int64_t i, int64_t j) const {
    const Pack<N> add = Pack<N>::load(x + i * stride + j);
    Pack<N> sum = Pack<N>::load(residual + i * residual_stride + j);
#pragma unroll
    for (int k = 0; k < N; k++) sum.item[k] += add.item[k];
    sum.store(total + i * total_stride + j);
    return sum;
  }
  template <int N>
  __device__ Pack<N> again(int64_t i, int64_t j) const {  // this thread wrote it
    return Pack<N>::load(total + i * total_stride + j);
  }
};

constexpr int kMostThreads = 256, kHeld = 4;  // packs of a thread that stay in registers

// Rows of up to kHeld packs a thread.
template <int N, class Row, class Y>
__global__ void __launch_bounds__(kMostThreads)
    norm_short_rows(Row row, const float* weight, float eps, int64_t t, int64_t d, Y* y,
                    int64_t y_stride) {
  let_next_start();
  const int step = static_cast<int>(blockDim.x) * N, first = static_cast<int>(threadIdx.x) * N;
  wait_for_previous();
  for (int64_t i = blockIdx.x; i < t; i += gridDim.x) {
    Pack<N> v[kHeld], w[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; k++) {
      if (first + k * step >= d) break;
      v[k] = row.template first<N>(i, first + k * step);
      w[k] = Pack<N>::load(weight + first + k * step);
    }
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kHeld; k++) {
      if (first + k * step >= d) break;
#pragma unroll
      for (int j = 0; j < N; j++) squares += v[k].item[j] * v[k].item[j];
    }
    const float scale = rsqrtf(block_sum(squares) / static_cast<float>(d) + eps);
#pragma unroll
    for (int k = 0; k < kHeld; k++) {
      if (first + k * step >= d) break;
#pragma unroll
      for (int j = 0; j < N; j++) v[k].item[j] *= scale * w[k].item[j];
      v[k].store(y + i * y_stride + first + k * step);
    }
  }
}

template <int N, class Row, class Y>
__global__ void norm_rows(Row row, const float* weight, float eps, int64_t t, int64_t d, Y* y,
                          int64_t y_stride) {
  let_next_start();
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(blockDim.x) * N;
  for (int64_t i = blockIdx.x; i < t; i += gridDim.x) {
    float squares = 0;
    for (int64_t j = threadIdx.x * N; j < d; j += step) {
      const Pack<N> v = row.template first<N>(i, j);
#pragma unroll
      for (int k = 0; k < N; k++) squares += v.item[k] * v.item[k];
    }
    const float scale = rsqrtf(block_sum(squares) / static_cast<float>(d) + eps);
    for (int64_t j = threadIdx.x * N; j < d; j += step) {
      Pack<N> v = row.template again<N>(i, j);
      const Pack<N> w = Pack<N>::load(weight + j);
#pragma unroll
      for (int k = 0; k < N; k++) v.item[k] *= scale * w.item[k];
      v.store(y + i * y_stride + j);
    }
  }
}

template <int N, class Row, class Y>
void launch_rows(Stream& s, Row row, const float* weight, float eps, int64_t t, int64_t d, Y* y,
                 int64_t y_stride) {
  if (t == 0 || d == 0) return;
  const int64_t packs = (d + N - 1) / N;
  const unsigned threads =
      packs >= kMostThreads ? kMostThreads : static_cast<unsigned>((packs + 31) / 32 * 32);
  const unsigned blocks = static_cast<unsigned>(t < INT32_MAX ? t : INT32_MAX);
  const auto kernel =
      packs <= kHeld * kMostThreads ? norm_short_rows<N, Row, Y> : norm_rows<N, Row, Y>;
  launch(s.handle, kernel, {blocks, threads}, row, weight, eps, t, d, y, y_stride);
}

constexpr int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace

void rms_norm(Stream& s, In x, In weight, float eps, Out y) {  // [t, d], [d] -> [t, d]
  const int64_t t = x.size(0), d = x.size(1);
  with_float(x.dtype(), [&](auto xt) {
    with_float(y.dtype(), [&](auto yt) {
      using X = decltype(xt);
      using Y = decltype(yt);
      constexpr int wide = smaller(16 / sizeof(X), 16 / sizeof(Y));
      const Plain<X> row{x.data<X>(), x.stride()};
      const float* w = weight.data<float>();
      Y* to = y.data<Y>();
      if (d % wide == 0 && packs<X>(x, wide) && packs<Y>(y, wide) && packs<float>(weight, wide))
        launch_rows<wide>(s, row, w, eps, t, d, to, y.stride());
      else
        launch_rows<1>(s, row, w, eps, t, d, to, y.stride());
    });
  });
}
KERNEL(rms_norm)

// total = residual + x in f32, then the norm of total.
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total) {
  const int64_t t = x.size(0), d = x.size(1);
  with_float(x.dtype(), [&](auto xt) {
    using X = decltype(xt);
    constexpr int wide = 4;  // residual and total are f32
    const Added<X> row{x.data<X>(), residual.data<float>(), total.data<float>(),
                       x.stride(),  residual.stride(),      total.stride()};
    const float* w = weight.data<float>();
    X* to = y.data<X>();
    if (d % wide == 0 && packs<X>(x, wide) && packs<X>(y, wide) && packs<float>(weight, wide) &&
        packs<float>(residual, wide) && packs<float>(total, wide))
      launch_rows<wide>(s, row, w, eps, t, d, to, y.stride());
    else
      launch_rows<1>(s, row, w, eps, t, d, to, y.stride());
  });
}
KERNEL(add_rms_norm)

}  // namespace ss::cuda
