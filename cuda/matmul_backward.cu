// dx = dy W and dW = dy^T x, each with what is there already added: cuBLASLt reads both as they lie; without it, or where they are of two
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

void add_to(Product& p, Opt plus) { p.addend = plus.view->data, p.addend_stride = plus.stride(); }

template <class Y>
__global__ void add_sums(const float* sums, const Y* plus, int64_t plus_stride, int64_t m, int64_t n, Y* y,
                         int64_t stride) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < m * n; i += step)
    from_float(y[i / n * stride + i % n], sums[i] + to_float(plus[i / n * plus_stride + i % n]));
}

// y = x w^T, or that and `plus`, which y may be itself: then sums of f32 wait in `room`.
void multiply(Stream& s, const View& x, const View& w, Opt plus, float* room, Out y) {
  if (!plus) return matmul(s, In{&x}, In{&w}, Opt{nullptr}, y);
  const int64_t m = y.size(0), n = y.size(1), blocks = (m * n + 1023) / 1024;
  const View sums = matrix(room, m, n);
  matmul(s, In{&x}, In{&w}, Opt{nullptr}, Out{&sums});
  with_float(y.dtype(), [&](auto type) {
    using Y = decltype(type);
    add_sums<Y><<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), 256, 0, s.handle>>>(
        room, plus.data<Y>(), plus.stride(), m, n, y.data<Y>(), y.stride());
  });
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

// [m, n], [n, k], [m, k] -> [m, k]
void matmul_input_gradient(Stream& s, In dy, In weight, Opt plus, Out dx) {
  const int64_t m = dy.size(0), n = weight.size(0), k = weight.size(1);
  if (m == 0 || k == 0) return;
  Product p{dy.view->data, weight.view->data, nullptr,        dx.view->data, m,
            k,             n,                 dy.stride(),    weight.stride(), dx.stride(),
            dy.dtype(),    weight.dtype(),    dx.dtype(),     false,           true};
  if (plus) add_to(p, plus);
  if (n > 0 && p.x_type == p.w_type && p.w_stride >= k && p.x_stride >= n &&
      s.blas->multiply(s.handle, p))
    return;
  const Scratch scratch(s, (n * k + (plus ? m * k : 0)) * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  turn(s, weight, scratch.floats());
  multiply(s, *dy.view, matrix(scratch.floats(), k, n), plus, scratch.floats() + n * k, dx);
}
KERNEL(matmul_input_gradient)

// [m, n], [m, k], [n, k] -> [n, k]
void matmul_weight_gradient(Stream& s, In dy, In x, Opt plus, Out dweight) {
  const int64_t m = dy.size(0), n = dy.size(1), k = x.size(1);
  if (n == 0 || k == 0) return;
  Product p{dy.view->data, x.view->data, nullptr,         dweight.view->data, n,
            k,             m,            dy.stride(),     x.stride(),         dweight.stride(),
            dy.dtype(),    x.dtype(),    dweight.dtype(), true,               true};
  if (plus) add_to(p, plus);
  if (m > 0 && p.x_type == p.w_type && p.w_stride >= k && p.x_stride >= n &&
      s.blas->multiply(s.handle, p))
    return;
  const Scratch scratch(s, (m * (n + k) + (plus ? n * k : 0)) * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  float *left = scratch.floats(), *right = left + m * n;
  turn(s, dy, left);
  turn(s, x, right);
  multiply(s, matrix(left, n, m), matrix(right, k, m), plus, right + m * k, dweight);
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
