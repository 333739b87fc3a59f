// y = (x - mean) / sqrt(variance + eps) * weight? + bias? over the last dimension. One block a row,
// which is read from memory once and then twice from the cache: the variance is taken around the
// mean. t*d*(sizeof(X) + sizeof(Y)) bytes move.
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

template <int N, class X, class Y>
__global__ void norm_rows(const X* x, int64_t x_stride, const float* weight, const float* bias,
                          float eps, int64_t t, int64_t d, Y* y, int64_t y_stride) {
  let_next_start();
  wait_for_previous();
  const int64_t step = int64_t{blockDim.x} * N, first = int64_t{threadIdx.x} * N;
  for (int64_t i = blockIdx.x; i < t; i += gridDim.x) {
    const X* row = x + i * x_stride;
    float total = 0;
    for (int64_t j = first; j < d; j += step) {
      const Pack<N> v = Pack<N>::load(row + j);
#pragma unroll
      for (int k = 0; k < N; k++) total += v.item[k];
    }
    const float mean = block_sum(total) / static_cast<float>(d);
    float squares = 0;
    for (int64_t j = first; j < d; j += step) {
      const Pack<N> v = Pack<N>::load(row + j);
#pragma unroll
      for (int k = 0; k < N; k++) squares += (v.item[k] - mean) * (v.item[k] - mean);
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(d) + eps);
    for (int64_t j = first; j < d; j += step) {
      Pack<N> v = Pack<N>::load(row + j);
#pragma unroll
      for (int k = 0; k < N; k++) {
        v.item[k] = (v.item[k] - mean) * scale;
        if (weight) v.item[k] *= weight[j + k];
        if (bias) v.item[k] += bias[j + k];
      }
      v.store(y + i * y_stride + j);
    }
  }
}

template <int N, class X, class Y>
void launch_rows(Stream& s, In x, Opt weight, Opt bias, float eps, Out y) {
  const int64_t t = x.size(0), d = x.size(1), packs = (d + N - 1) / N;
  if (t == 0 || d == 0) return;
  const unsigned threads = packs >= 256 ? 256 : static_cast<unsigned>((packs + 31) / 32 * 32);
  const unsigned blocks = static_cast<unsigned>(t < INT32_MAX ? t : INT32_MAX);
  launch(s.handle, norm_rows<N, X, Y>, {blocks, threads}, x.data<X>(), x.stride(),
         weight ? weight.data<float>() : nullptr, bias ? bias.data<float>() : nullptr, eps, t, d,
         y.data<Y>(), y.stride());
}

}  // namespace

void layer_norm(Stream& s, In x, Opt weight, Opt bias, float eps, Out y) {  // [t, d], [d] -> [t, d]
  with_float(x.dtype(), [&](auto xt) {
    with_float(y.dtype(), [&](auto yt) {
      using X = decltype(xt);
      using Y = decltype(yt);
      constexpr int wide = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));
      if (x.size(1) % wide == 0 && packs<X>(x, wide) && packs<Y>(y, wide))
        launch_rows<wide, X, Y>(s, x, weight, bias, eps, y);
      else
        launch_rows<1, X, Y>(s, x, weight, bias, eps, y);
    });
  });
}
KERNEL(layer_norm)

}  // namespace ss::cuda
