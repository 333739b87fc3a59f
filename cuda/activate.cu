// y = f(x) * factor: each element once, memory bound. f as the CPU's.
#include "device/gate.cuh"
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

// N neighbours a thread.
template <int Kind, int N, class T>
__global__ void map(const T* x, int64_t x_stride, const T* factor, int64_t factor_stride, int64_t t,
                    int64_t d, T* y) {
  const int64_t packs = d / N, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < t * packs; i += step) {
    const int64_t row = i / packs, column = i % packs * N;
    Pack<N> v = Pack<N>::load(x + row * x_stride + column);
#pragma unroll
    for (int j = 0; j < N; j++) v.item[j] = activated<Kind>(v.item[j]);
    if (factor) {
      const Pack<N> f = Pack<N>::load(factor + row * factor_stride + column);
#pragma unroll
      for (int j = 0; j < N; j++) v.item[j] *= f.item[j];
    }
    v.store(y + row * d + column);
  }
}

template <int Kind, class T>
void launch(Stream& s, In x, Opt factor, Out y) {
  constexpr int wide = 16 / sizeof(T);
  const int64_t t = x.size(0), d = x.size(1), stride = factor ? factor.stride() : 0;
  const T* f = factor ? factor.data<T>() : nullptr;
  const bool packed = d % wide == 0 && packs<T>(x, wide) && packs<T>(y, wide) &&
                      (!factor || packs<T>(factor, wide));
  const int64_t blocks = (t * d / (packed ? wide : 1) + 255) / 256;
  if (blocks == 0) return;
  const unsigned grid = static_cast<unsigned>(blocks < 8192 ? blocks : 8192);
  if (packed)
    map<Kind, wide, T><<<grid, 256, 0, s.handle>>>(x.data<T>(), x.stride(), f, stride, t, d, y.data<T>());
  else
    map<Kind, 1, T><<<grid, 256, 0, s.handle>>>(x.data<T>(), x.stride(), f, stride, t, d, y.data<T>());
}

}  // namespace

void activate(Stream& s, In x, Opt factor, int64_t kind, Out y) {  // [t, d] -> [t, d]
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (kind == 0)
      launch<0, T>(s, x, factor, y);
    else if (kind == 1)
      launch<1, T>(s, x, factor, y);
    else if (kind == 2)
      launch<2, T>(s, x, factor, y);
    else
      launch<3, T>(s, x, factor, y);
  });
}
KERNEL(activate)

}  // namespace ss::cuda
