// dx = dy W and dW = dy^T x: cuBLASLt reads both as they lie; without it, or where they are of two
// types, matmul gets copies that are turned, as f32. Sums of columns in two steps, parts of kRows rows first.
#include <type_traits>

#include "device/pack.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"

namespace ss::cuda {

void matmul(Stream& s, In x, In weight, Opt bias, Out y);

namespace {

constexpr int kSide = 32;          // of the square that a block turns
constexpr int64_t kRows = 128;     // rows of a part of column_sums

template <class T>
__global__ void turn_squares(const T* x, int64_t stride, int64_t rows, int64_t columns, float* to) {
  __shared__ float square[kSide][kSide + 1];
  const int64_t across = (columns + kSide - 1) / kSide;
  const int64_t row = blockIdx.x / across * kSide, column = blockIdx.x % across * kSide;
  for (int i = threadIdx.y; i < kSide; i += blockDim.y)
    if (row + i < rows && column + threadIdx.x < columns)
      square[i][threadIdx.x] = to_float(x[(row + i) * stride + column + threadIdx.x]);
  __syncthreads();
  for (int i = threadIdx.y; i < kSide; i += blockDim.y)
    if (column + i < columns && row + threadIdx.x < rows)
      to[(column + i) * rows + row + threadIdx.x] = square[threadIdx.x][i];
}

// x^T as dense f32.
void turn(Stream& s, In x, float* to) {
  const int64_t rows = x.size(0), columns = x.size(1);
  const int64_t blocks = ((rows + kSide - 1) / kSide) * ((columns + kSide - 1) / kSide);
  if (blocks == 0) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    turn_squares<T><<<static_cast<unsigned>(blocks), dim3(kSide, 8), 0, s.handle>>>(
        x.data<T>(), x.stride(), rows, columns, to);
  });
}

View matrix(float* data, int64_t rows, int64_t columns) {
  return {data, {rows, columns}, columns, 2, DType::f32};
}

template <class T>
__global__ void __launch_bounds__(256)
    sum_rows(const T* x, int64_t stride, int64_t t, int64_t d, float* parts) {
  let_next_start();
  wait_for_previous();
  const int64_t j = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, first = blockIdx.y * kRows;
  if (j >= d) return;
  const int64_t end = first + kRows < t ? first + kRows : t;
  float total = 0;
#pragma unroll 8
  for (int64_t i = first; i < end; i++) total += to_float(x[i * stride + j]);
  parts[blockIdx.y * d + j] = total;
}

}  // namespace

void matmul_input_gradient(Stream& s, In dy, In weight, Out dx) {  // [m, n], [n, k] -> [m, k]
  const int64_t m = dy.size(0), n = weight.size(0), k = weight.size(1);
  if (m == 0 || k == 0) return;
  const Product p{dy.view->data, weight.view->data, nullptr,        dx.view->data, m,
                  k,             n,                 dy.stride(),    weight.stride(), dx.stride(),
                  dy.dtype(),    weight.dtype(),    dx.dtype(),     false,           true};
  if (n > 0 && p.x_type == p.w_type && p.w_stride >= k && p.x_stride >= n &&
      s.blas->multiply(s.handle, p))
    return;
  const Scratch scratch(s, n * k * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  turn(s, weight, scratch.floats());
  const View turned = matrix(scratch.floats(), k, n);
  matmul(s, dy, In{&turned}, Opt{nullptr}, dx);
}
KERNEL(matmul_input_gradient)

void matmul_weight_gradient(Stream& s, In dy, In x, Out dweight) {  // [m, n], [m, k] -> [n, k]
  const int64_t m = dy.size(0), n = dy.size(1), k = x.size(1);
  if (n == 0 || k == 0) return;
  const Product p{dy.view->data, x.view->data, nullptr,         dweight.view->data, n,
                  k,             m,            dy.stride(),     x.stride(),         dweight.stride(),
                  dy.dtype(),    x.dtype(),    dweight.dtype(), true,               true};
  if (m > 0 && p.x_type == p.w_type && p.w_stride >= k && p.x_stride >= n &&
      s.blas->multiply(s.handle, p))
    return;
  const Scratch scratch(s, m * (n + k) * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  float* other = scratch.floats() + m * n;
  turn(s, dy, scratch.floats());
  turn(s, x, other);
  const View left = matrix(scratch.floats(), n, m), right = matrix(other, k, m);
  matmul(s, In{&left}, In{&right}, Opt{nullptr}, dweight);
}
KERNEL(matmul_weight_gradient)

void column_sums(Stream& s, In x, Out sum) {  // [t, d] -> [d]
  const int64_t t = x.size(0), d = x.size(1), parts = (t + kRows - 1) / kRows;
  if (d == 0) return;
  const Scratch scratch(s, parts * d * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    for (int64_t first = 0; first < parts; first += 65535) {
      const int64_t count = parts - first < 65535 ? parts - first : 65535;
      launch(s.handle, sum_rows<T>,
             {dim3(static_cast<unsigned>((d + 255) / 256), static_cast<unsigned>(count)), 256},
             x.data<T>() + first * kRows * x.stride(), x.stride(), t - first * kRows, d,
             scratch.floats() + first * d);
    }
  });
  add_parts(s, scratch.floats(), parts, d, d, sum.data<float>());
}
KERNEL(column_sums)

}  // namespace ss::cuda
