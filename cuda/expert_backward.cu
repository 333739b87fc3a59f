// What gradients of experts move: matrices turned in squares of 32, one assignment's row a block on the
// way back through expert_combine and expert_matmul's gathering, columns of a bias summed over its
// expert's places in order.
#include "device/fault.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "scratch.h"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kSide = 32;

template <class T>
__global__ void turn_squares(const T* from, int64_t stride, int64_t n, int64_t d, T* to) {
  __shared__ T square[kSide][kSide + 2];
  const int64_t across = (d + kSide - 1) / kSide;
  const int64_t row = blockIdx.x / across * kSide, column = blockIdx.x % across * kSide;
  from += blockIdx.y * stride, to += blockIdx.y * n * d;
  for (int i = threadIdx.y; i < kSide; i += blockDim.y)
    if (row + i < n && column + threadIdx.x < d)
      square[i][threadIdx.x] = from[(row + i) * d + column + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < kSide; i += blockDim.y)
    if (column + i < d && row + threadIdx.x < n)
      to[(column + i) * n + row + threadIdx.x] = square[threadIdx.x][i];
}

__device__ int64_t bounded(int32_t at, int64_t places) { return at < 0 ? 0 : at < places ? at : places; }

constexpr int kColumns = 32, kSides = 16;

template <class T>
__global__ void __launch_bounds__(kColumns* kSides)
    sum_places(const T* dy, int64_t stride, const int32_t* offsets, int64_t places, int64_t n, float* sum) {
  __shared__ float sums[kSides][kColumns];
  const int column = threadIdx.x % kColumns, side = threadIdx.x / kColumns;
  const int64_t j = blockIdx.x * int64_t{kColumns} + column, expert = blockIdx.y;
  const int64_t end = bounded(offsets[expert + 1], places);
  float total = 0;
  for (int64_t p = bounded(offsets[expert], places) + side; p < end && j < n; p += kSides)
    total += to_float(dy[p * stride + j]);
  sums[side][column] = total;
  __syncthreads();
  if (side > 0 || j >= n) return;
#pragma unroll
  for (int i = 1; i < kSides; i++) total += sums[i][column];
  sum[expert * n + j] = total;
}

// place[order[p]] = p; the others stay as they are.
__global__ void invert(const int32_t* order, int64_t a, int32_t* place, Fault* fault) {
  const int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (p >= a) return;
  const int32_t at = order[p];
  if (at >= a) fault->report(p, at, a);
  if (at >= 0 && at < a) place[at] = static_cast<int32_t>(p);
}

template <class X, class Y>
__global__ void sum_assignments(const X* dx, int64_t stride, const int32_t* place, int64_t k, int64_t d,
                                Y* sum) {
  const int64_t i = blockIdx.x;
  for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
    float total = 0;
    for (int64_t j = 0; j < k; j++) {
      const int32_t p = place[i * k + j];
      if (p >= 0) total += to_float(dx[p * stride + c]);
    }
    from_float(sum[i * d + c], total);
  }
}

template <class T>
struct Combined {
  const T *x, *dy;
  const int32_t* place;
  const float* weights;
  int64_t x_stride, dy_stride, weights_stride, a, k, d;
  T* dx;
  float* dweights;
  Fault* fault;
};

// A block has an assignment.
template <class T>
__global__ void combine_back(const Combined<T> s) {
  const int64_t i = blockIdx.x, token = i / s.k;
  const int32_t p = s.place[i];
  if (p >= s.a && threadIdx.x == 0) s.fault->report(i, p, s.a);
  const bool there = p >= 0 && p < s.a;
  const float weight = s.weights[token * s.weights_stride + i % s.k];
  float along = 0;
  for (int64_t c = threadIdx.x; c < s.d && there; c += blockDim.x) {
    const float given = to_float(s.dy[token * s.dy_stride + c]);
    along = fmaf(given, to_float(s.x[p * s.x_stride + c]), along);
    from_float(s.dx[p * s.d + c], weight * given);
  }
  along = block_sum(along);
  if (threadIdx.x == 0) s.dweights[i] = along;
}

int threads_for(int64_t d) { return d >= 256 ? 256 : static_cast<int>((d + 31) / 32 * 32); }
unsigned grid(int64_t n) { return static_cast<unsigned>(n); }

}  // namespace

void turn_experts(Stream& s, In weight, Out turned) {  // [e, n, d] -> [e, d, n]
  const int64_t e = weight.size(0), n = weight.size(1), d = weight.size(2);
  const int64_t squares = (n + kSide - 1) / kSide * ((d + kSide - 1) / kSide);
  if (e * squares == 0) return;
  with_float(weight.dtype(), [&](auto type) {
    using T = decltype(type);
    for (int64_t first = 0; first < e; first += 65535) {
      const int64_t count = e - first < 65535 ? e - first : 65535;
      turn_squares<T><<<dim3(grid(squares), grid(count)), dim3(kSide, 8), 0, s.handle>>>(
          weight.data<T>() + first * weight.stride(), weight.stride(), n, d,
          turned.data<T>() + first * n * d);
    }
  });
}
KERNEL(turn_experts)

void expert_column_sums(Stream& s, In dy, In offsets, Out sum) {  // [a, n] -> [e, n]
  const int64_t e = sum.size(0), n = sum.size(1), across = (n + kColumns - 1) / kColumns;
  with_float(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    for (int64_t first = 0; first < e && n > 0; first += 65535) {
      const int64_t count = e - first < 65535 ? e - first : 65535;
      sum_places<T><<<dim3(grid(across), grid(count)), kColumns * kSides, 0, s.handle>>>(
          dy.data<T>(), dy.stride(), offsets.data<int32_t>() + first, dy.size(0), n,
          sum.data<float>() + first * n);
    }
  });
}
KERNEL(expert_column_sums)

void expert_gather_backward(Stream& s, In dx, In order, int64_t t, Out sum) {  // [a, d] -> [t, d]
  const int64_t a = dx.size(0), d = dx.size(1);
  if (t == 0 || d == 0) return;
  const Scratch scratch(s, a * static_cast<int64_t>(sizeof(int32_t)) + 16);
  if (!scratch.floats()) return;  // the queue reports it
  int32_t* place = reinterpret_cast<int32_t*>(scratch.floats());
  cudaMemsetAsync(place, 0xff, static_cast<size_t>(a) * sizeof(int32_t), s.handle);
  if (a > 0)
    invert<<<grid((a + 255) / 256), 256, 0, s.handle>>>(
        order.data<int32_t>(), a, place, s.fault("order[%lld] is %d, expected less than %lld"));
  with_float(dx.dtype(), [&](auto xt) {
    with_float(sum.dtype(), [&](auto yt) {
      sum_assignments<<<grid(t), threads_for(d), 0, s.handle>>>(
          dx.data<decltype(xt)>(), dx.stride(), place, a / t, d, sum.data<decltype(yt)>());
    });
  });
}
KERNEL(expert_gather_backward)

// [a, d], [a], [t, k], [t, d] -> [a, d], [t, k]
void expert_combine_backward(Stream& s, In x, In place, In weights, In dy, Out dx, Out dweights) {
  const int64_t a = x.size(0), d = x.size(1);
  if (a == 0) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    // Places that no assignment has.
    if (d > 0) cudaMemsetAsync(dx.data<T>(), 0, static_cast<size_t>(a * d) * sizeof(T), s.handle);
    Combined<T> c{};
    c.x = x.data<T>(), c.x_stride = x.stride(), c.dy = dy.data<T>(), c.dy_stride = dy.stride();
    c.place = place.data<int32_t>(), c.weights = weights.data<float>();
    c.weights_stride = weights.stride(), c.a = a, c.k = weights.size(1), c.d = d;
    c.dx = dx.data<T>(), c.dweights = dweights.data<float>();
    c.fault = s.fault("place[%lld] is %d, expected less than %lld");
    combine_back<T><<<grid(a), d > 0 ? threads_for(d) : 32, 0, s.handle>>>(c);
  });
}
KERNEL(expert_combine_backward)

}  // namespace ss::cuda
