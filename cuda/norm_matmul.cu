// sum = residual + x, normed = rms_norm(sum), y = normed W^T + bias: the start of a layer in a decode
// step. For up to kNormedRows rows of halves one kernel: every block makes the normed rows itself,
// in shared memory, while its first weights are on their way. A row is 6 d bytes from the L2 for
// each of a few hundred blocks: for more rows the norm has a kernel of its own. Both ways give the
// same bits: the squares are summed in add_rms_norm's order.
#include "dispatch.cuh"
#include "matmul_stream.cuh"
#include "stream.h"

namespace ss::cuda {

void rms_norm(Stream& s, In x, In weight, float eps, Out y);
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total);
void cast(Stream& s, In x, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

namespace {

constexpr int64_t kNormedRows = 2;
constexpr int64_t kNormedWidth = 8192;  // columns, that the rows fit in shared memory

template <class T>
struct Norm {
  const T* x;  // or null
  const float *residual, *weight;
  float* sum;
  T* normed;
  int64_t x_stride, residual_stride, sum_stride, normed_stride;
  float eps;
};

// The first block also writes what the other kernels of the layer read.
template <class T>
__device__ void norm_row(const Norm<T>& norm, int64_t i, int64_t d, T* row) {
  constexpr int N = 4, kMost = kNormedWidth / (N * kStreamThreads);
  Pack<N> kept[kMost];
  float squares = 0;
#pragma unroll
  for (int part = 0; part < kMost; part++) {
    const int64_t j = (part * kStreamThreads + int64_t{threadIdx.x}) * N;
    if (j >= d) break;
    Pack<N> v = Pack<N>::load(norm.residual + i * norm.residual_stride + j);
    if (norm.x) {
      const Pack<N> add = Pack<N>::load(norm.x + i * norm.x_stride + j);
#pragma unroll
      for (int k = 0; k < N; k++) v.item[k] += add.item[k];
    }
#pragma unroll
    for (int k = 0; k < N; k++) squares += v.item[k] * v.item[k];
    if (blockIdx.x == 0) v.store(norm.sum + i * norm.sum_stride + j);
    kept[part] = v;
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(d) + norm.eps);
#pragma unroll
  for (int part = 0; part < kMost; part++) {
    const int64_t j = (part * kStreamThreads + int64_t{threadIdx.x}) * N;
    if (j >= d) break;
    const Pack<N> w = Pack<N>::load(norm.weight + j);
#pragma unroll
    for (int k = 0; k < N; k++) kept[part].item[k] *= scale * w.item[k];
    kept[part].store(row + j);
    if (blockIdx.x == 0) kept[part].store(norm.normed + i * norm.normed_stride + j);
  }
}

template <class T, int U>
__global__ void __launch_bounds__(kStreamThreads, 2) norm_stream(const Product p,
                                                                 const Norm<T> norm) {
  using W = Weights<T, 1, U, false, true>;
  extern __shared__ uint4 memory[];
  __shared__ typename W::Sums sums;
  T* rows = reinterpret_cast<T*>(memory);  // [m, k]
  const W weights{p};
  let_next_start();
  weights.prefetch();
  wait_for_previous();
  const auto first = weights.load(blockIdx.x, weights.warp * kWarpColumns);
  for (int64_t i = 0; i < p.m; i++) norm_row(norm, i, p.k, rows + i * p.k);
  __syncthreads();
  weights.multiply(
      first,
      [&](int row, int64_t at) {
        const T* from = rows + least(row, p.m - 1) * p.k + at;
        return at < p.k ? *reinterpret_cast<const uint4*>(from) : uint4{};
      },
      sums);
}

template <class T>
bool fits(Opt x, In residual, In norm_weight, In weight, Out y, Out sum, Out normed) {
  const int64_t m = residual.size(0), d = residual.size(1);
  return m > 0 && weight.size(0) > 0 && m <= kNormedRows && d > 0 && d % 8 == 0 &&
         d <= kNormedWidth && weight.dtype() == normed.dtype() && packs<T>(weight, 8) &&
         (!x || packs<T>(x, 4)) && packs<float>(residual, 4) && packs<float>(norm_weight, 4) &&
         packs<float>(sum, 4) && packs<T>(normed, 4) && y.size(0) == m;
}

template <class T>
void launch_norm(Stream& s, const Product& p, const Norm<T>& norm) {
  const Grid grid{stream_blocks(p.n, 8), unsigned{kStreamThreads},
                  static_cast<size_t>(p.m * p.k) * sizeof(T)};
  if (p.k <= 2 * kColumns)
    launch(s.handle, norm_stream<T, 2>, grid, p, norm);
  else
    launch(s.handle, norm_stream<T, 4>, grid, p, norm);
}

}  // namespace

// [t, d]?, [t, d], [d], [n, d], [n]? -> [t, n], [t, d], [t, d]
void norm_matmul(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                 Out y, Out sum, Out normed) {
  const auto together = [&](auto t) {
    using T = decltype(t);
    if (!fits<T>(x, residual, norm_weight, weight, y, sum, normed)) return false;
    const Product p{nullptr,
                    weight.view->data,
                    bias ? bias.data<float>() : nullptr,
                    y.view->data,
                    residual.size(0),
                    weight.size(0),
                    residual.size(1),
                    0,
                    weight.stride(),
                    y.stride(),
                    normed.dtype(),
                    weight.dtype(),
                    y.dtype()};
    launch_norm<T>(s, p,
                   {x ? x.template data<T>() : nullptr, residual.data<float>(),
                    norm_weight.data<float>(), sum.data<float>(), normed.data<T>(),
                    x ? x.stride() : 0, residual.stride(), sum.stride(), normed.stride(), eps});
    return true;
  };
  if (normed.dtype() == DType::bf16 && together(__nv_bfloat16{})) return;
  if (normed.dtype() == DType::f16 && together(__half{})) return;
  if (x) {
    add_rms_norm(s, In{x.view}, residual, norm_weight, eps, normed, sum);
  } else {
    cast(s, residual, sum);
    rms_norm(s, residual, norm_weight, eps, normed);
  }
  matmul(s, In{normed.view}, weight, bias, y);
}
KERNEL(norm_matmul)

}  // namespace ss::cuda
