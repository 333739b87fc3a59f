// y = x W^T + bias, summed in f32. Up to 16 rows of x: matmul_stream.cuh for halves, matmul_few.cuh
// else, at the speed of memory. More: cuBLASLt where x and W have one type and the library is there,
// else matmul_tile.cuh. A row's bits do not depend on the rows beside it, but for cuBLASLt, which
// chooses an order of summation by m. Which of its proposals is taken:
// docs/kernels/prefill.md. Measured on an H200 and left: a kernel for 17 to 256 rows with k shared
// over a cluster (1.4 to 7 times slower, but a tie where n is under 200).
#include "dispatch.cuh"
#include "matmul_stream.cuh"
#include "matmul_tile.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

template <class Y>
__global__ void add_bias(const float* sums, const float* bias, int64_t m, int64_t n, Y* y,
                         int64_t stride) {
  let_next_start();
  wait_for_previous();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < m * n; i += step)
    from_float(y[i / n * stride + i % n], sums[i] + bias[i % n]);
}

// cuBLASLt adds a bias of y's type alone. Rounded to a half it would cost accuracy where it and the
// product cancel, so that a half y gets it from f32 sums, some rows at a time.
bool multiply_blas(Stream& s, const Product& p) {
  if (p.k == 0 || p.x_stride < p.k || p.w_stride < p.k || p.y_stride < p.n) return false;
  if (!p.bias || p.y_type == DType::f32) return s.blas->multiply(s.handle, p);
  const int64_t rows = Blas::kRoom / sizeof(float) / p.n;
  float* sums = rows > 0 ? static_cast<float*>(s.blas->room()) : nullptr;
  if (!sums) return false;
  bool done = true;
  for (int64_t i = 0; i < p.m && done; i += rows) {
    const int64_t size = size_of(p.x_type), count = least(rows, p.m - i);
    Product part = p;
    part.x = static_cast<const char*>(p.x) + i * p.x_stride * size;
    part.y = sums;
    part.bias = nullptr;
    part.m = count;
    part.y_stride = p.n;
    part.y_type = DType::f32;
    done = s.blas->multiply(s.handle, part);
    if (!done) break;
    const int64_t blocks = least(ceil_div(count * p.n, 1024), 4096);
    const auto add = [&](auto yt) {
      using Y = decltype(yt);
      launch(s.handle, add_bias<Y>, {static_cast<unsigned>(blocks), 256}, sums, p.bias, count, p.n,
             static_cast<Y*>(p.y) + i * p.y_stride, p.y_stride);
    };
    if (p.y_type == DType::bf16)
      add(__nv_bfloat16{});
    else
      add(__half{});
  }
  return done;
}

// Whether rows of both can be read 16 bytes at a time.
template <class T>
bool wide_rows(In x, In weight) {
  constexpr int items = 16 / sizeof(T);
  return x.size(1) % items == 0 && packs<T>(x, items) && packs<T>(weight, items);
}

template <class W>
void multiply_few_rows(Stream& s, In x, In weight, const Product& p) {
  constexpr int V = 16 / sizeof(W);
  if (p.k % V == 0 && packs<float>(x, V) && packs<W>(weight, V))
    multiply_few_fma<W, V>(s.handle, p);
  else
    multiply_few_fma<W, 1>(s.handle, p);
}

}  // namespace

void matmul(Stream& s, In x, In weight, Opt bias, Out y) {  // [m, k], [n, k], [n] -> [m, n]
  const Product p{x.view->data, weight.view->data, bias ? bias.data<float>() : nullptr,
                  y.view->data, x.size(0),         weight.size(0),
                  x.size(1),    x.stride(),        weight.stride(),
                  y.stride(),   x.dtype(),         weight.dtype(),
                  y.dtype()};
  if (p.m == 0 || p.n == 0) return;
  const bool few = p.m <= kFew, same = p.x_type == p.w_type;
  if (!few && same && multiply_blas(s, p)) return;
  with_float(p.x_type, [&](auto xt) {
    with_float(p.w_type, [&](auto wt) {
      using X = decltype(xt);
      using W = decltype(wt);
      if constexpr (sizeof(X) == 2 && std::is_same_v<X, W>) {
        const bool wide = wide_rows<X>(x, weight);
        if (few) return multiply_stream<X>(s.handle, p, wide);
        if (wide) return multiply_tile_mma<X>(s.handle, p);
      }
      if constexpr (sizeof(X) == 4) {
        if (few) return multiply_few_rows<W>(s, x, weight, p);
      }
      multiply_tile_fma<X, W>(s.handle, p);
    });
  });
}
KERNEL(matmul)

}  // namespace ss::cuda
