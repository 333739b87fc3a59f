// dx = dy factor f'(x), dfactor = dy f(x), f as in activate: each element once, memory bound.
#include "device/gate.cuh"
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

template <int Kind>
__device__ float slope(float x) {
  if constexpr (Kind == 0) return x != x ? x : x > 0.0f ? 1.0f : 0.0f;
  if constexpr (Kind == 1) {
    const float near = fminf(fmaxf(x, -20.0f), 20.0f);  // beyond, phi is 0; infinity would make it NaN
    return fmaf(near * 0.39894228f, expf(-0.5f * near * near), 0.5f * erfcf(x * -0.70710678f));
  }
  const float s = 1.0f / (1.0f + expf(-x));
  if constexpr (Kind == 2) {
    const float near = fminf(fmaxf(x, -90.0f), 90.0f);
    return fmaf(near * s, 1.0f - s, s);
  }
  if constexpr (Kind == 3) return s * (1.0f - s);
}

template <class T>
struct Given {
  const T *x, *factor, *dy;
  T *dx, *dfactor;
  int64_t x_stride, factor_stride, dy_stride, dx_stride, dfactor_stride, t, d;
};

// N neighbours a thread.
template <int Kind, int N, class T>
__global__ void map_back(const Given<T> g) {
  let_next_start();
  wait_for_previous();
  const int64_t packs = g.d / N, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < g.t * packs; i += step) {
    const int64_t row = i / packs, column = i % packs * N;
    const Pack<N> x = Pack<N>::load(g.x + row * g.x_stride + column);
    Pack<N> dx = Pack<N>::load(g.dy + row * g.dy_stride + column);
    if (g.factor) {
      const Pack<N> f = Pack<N>::load(g.factor + row * g.factor_stride + column);
      Pack<N> df;
#pragma unroll
      for (int j = 0; j < N; j++) {
        df.item[j] = dx.item[j] * activated<Kind>(x.item[j]);
        dx.item[j] *= f.item[j];
      }
      df.store(g.dfactor + row * g.dfactor_stride + column);
    }
#pragma unroll
    for (int j = 0; j < N; j++) dx.item[j] *= slope<Kind>(x.item[j]);
    dx.store(g.dx + row * g.dx_stride + column);
  }
}

template <int Kind, class T>
void start(Stream& s, const Given<T>& g, bool packed) {
  constexpr int wide = 16 / sizeof(T);
  const int64_t blocks = (g.t * g.d / (packed ? wide : 1) + 255) / 256;
  if (blocks == 0) return;
  const unsigned grid = static_cast<unsigned>(blocks < 8192 ? blocks : 8192);
  launch(s.handle, packed ? map_back<Kind, wide, T> : map_back<Kind, 1, T>, {grid, 256}, g);
}

}  // namespace

// [t, d], three times
void activate_backward(Stream& s, In x, Opt factor, In dy, int64_t kind, Out dx, Out dfactor) {
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int wide = 16 / sizeof(T);
    Given<T> g{x.data<T>(), nullptr, dy.data<T>(), dx.data<T>(), nullptr, x.stride(), 0, dy.stride(),
               dx.stride(), 0, x.size(0), x.size(1)};
    bool packed = g.d % wide == 0 && packs<T>(x, wide) && packs<T>(dy, wide) && packs<T>(dx, wide);
    if (factor) {
      g.factor = factor.data<T>(), g.factor_stride = factor.stride(), g.dfactor = dfactor.data<T>();
      g.dfactor_stride = dfactor.stride();
      packed = packed && packs<T>(factor, wide) && packs<T>(dfactor, wide);
    }
    if (kind == 0)
      start<0, T>(s, g, packed);
    else if (kind == 1)
      start<1, T>(s, g, packed);
    else if (kind == 2)
      start<2, T>(s, g, packed);
    else
      start<3, T>(s, g, packed);
  });
}
KERNEL(activate_backward)

}  // namespace ss::cuda
