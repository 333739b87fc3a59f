// sum = residual + x, normed = rms_norm(sum), y = normed W^T + bias: the start of a layer in a decode
// step. One row of halves: one kernel, in which every block makes the normed row itself, in shared
// memory, while its first weights are on their way. From two rows on the norm has a kernel of its
// own: it is not slower then, since every one of some hundred blocks would read all rows. Both ways
// give the same bits: the squares are summed in add_rms_norm's order.
#include "dispatch.cuh"
#include "matmul_stream.cuh"
#include "stream.h"

namespace ss::cuda {

void rms_norm(Stream& s, In x, In weight, float eps, Out y);
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total);
void cast(Stream& s, In x, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

namespace {

constexpr int kPack = 4;                              // as add_rms_norm takes them
constexpr int64_t kOfPart = kPack * kStreamThreads;  // columns that a block takes at a time
constexpr int kMostParts = 4;

template <class T>
struct Norm {
  const T* x;  // or null
  const float *residual, *weight;
  float* sum;
  T* normed;
  float eps;
};

template <int Parts>
struct Row {
  Pack<kPack> sum[Parts], weight[Parts];
};

template <int Parts, class T>
__device__ Row<Parts> load_row(const Norm<T>& norm, int64_t d) {
  Row<Parts> row;
#pragma unroll
  for (int part = 0; part < Parts; part++) {
    const int64_t j = part * kOfPart + int64_t{threadIdx.x} * kPack;
    if (j >= d) break;
    row.sum[part] = Pack<kPack>::load(norm.residual + j);
    row.weight[part] = Pack<kPack>::load(norm.weight + j);
    if (!norm.x) continue;
    const Pack<kPack> add = Pack<kPack>::load(norm.x + j);
#pragma unroll
    for (int k = 0; k < kPack; k++) row.sum[part].item[k] += add.item[k];
  }
  return row;
}

// The first block also writes what the other kernels of the layer read.
template <int Parts, class T>
__device__ void norm_row(Row<Parts>& row, const Norm<T>& norm, int64_t d, T* to) {
  float squares = 0;
#pragma unroll
  for (int part = 0; part < Parts; part++) {
    const int64_t j = part * kOfPart + int64_t{threadIdx.x} * kPack;
    if (j >= d) break;
#pragma unroll
    for (int k = 0; k < kPack; k++)
      squares += row.sum[part].item[k] * row.sum[part].item[k];
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(d) + norm.eps);
#pragma unroll
  for (int part = 0; part < Parts; part++) {
    const int64_t j = part * kOfPart + int64_t{threadIdx.x} * kPack;
    if (j >= d) break;
    if (blockIdx.x == 0) row.sum[part].store(norm.sum + j);
#pragma unroll
    for (int k = 0; k < kPack; k++) row.sum[part].item[k] *= scale * row.weight[part].item[k];
    row.sum[part].store(to + j);
    if (blockIdx.x == 0) row.sum[part].store(norm.normed + j);
  }
}

// The row is asked for before the weights: 32 KiB of those would stand before it in the queue.
template <class T, int U, int Parts>
__global__ void __launch_bounds__(kStreamThreads, 2) norm_stream(const Product p,
                                                                 const Norm<T> norm) {
  using W = Weights<T, 1, U, false, true>;
  __shared__ uint4 memory[Parts * kOfPart * sizeof(T) / sizeof(uint4)];
  __shared__ typename W::Sums sums;
  T* normed = reinterpret_cast<T*>(memory);
  const W weights{p};
  let_next_start();
  weights.prefetch();
  wait_for_previous();
  Row<Parts> row = load_row<Parts>(norm, p.k);
  const auto first = weights.load(blockIdx.x, weights.warp * kWarpColumns);
  norm_row(row, norm, p.k, normed);
  __syncthreads();
  weights.multiply(
      first,
      [&](int, int64_t at) {
        return at < p.k ? *reinterpret_cast<const uint4*>(normed + at) : uint4{};
      },
      sums);
}

template <class T>
bool fits(Opt x, In residual, In norm_weight, In weight, Out sum, Out normed) {
  const int64_t m = residual.size(0), d = residual.size(1);
  return m == 1 && weight.size(0) > 0 && d > 0 && d % 8 == 0 && d <= kMostParts * kOfPart &&
         weight.dtype() == normed.dtype() && packs<T>(weight, 8) && (!x || packs<T>(x, kPack)) &&
         packs<float>(residual, kPack) && packs<float>(norm_weight, kPack) &&
         packs<float>(sum, kPack) && packs<T>(normed, kPack);
}

template <class T>
void launch_norm(Stream& s, const Product& p, const Norm<T>& norm) {
  constexpr unsigned kThreads = kStreamThreads;
  if (p.k <= kOfPart)
    launch(s.handle, norm_stream<T, 2, 1>, {stream_blocks<1, 2>(p.n), kThreads}, p, norm);
  else
    launch(s.handle, norm_stream<T, 4, kMostParts>, {stream_blocks<1, 4>(p.n), kThreads}, p, norm);
}

}  // namespace

// [t, d]?, [t, d], [d], [n, d], [n]? -> [t, n], [t, d], [t, d]
void norm_matmul(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                 Out y, Out sum, Out normed) {
  const auto together = [&](auto t) {
    using T = decltype(t);
    if (!fits<T>(x, residual, norm_weight, weight, sum, normed)) return false;
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
                    norm_weight.data<float>(), sum.data<float>(), normed.data<T>(), eps});
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
