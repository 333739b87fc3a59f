// Which experts a token goes to. route_experts: one warp a token, the row read k + 3 times from the
// cache, t*e*8 bytes of memory moved. sinkhorn: one block, since a turn needs the sums of the one
// before; each turn reads the matrix once.
#include <math.h>

#include "device/pack.cuh"
#include "device/philox.cuh"
#include "device/route.cuh"
#include "dispatch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kWarps = 4;

__global__ void __launch_bounds__(32 * kWarps)
    choose(const float* logits, int64_t x_stride, const float* scores, int64_t s_stride, int64_t t,
           int64_t e, int64_t k, bool sigmoid, bool normalize, int32_t* experts, float* weights,
           float* probs) {
  const int lane = threadIdx.x % 32;
  const int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (i >= t) return;
  const float* x = logits + i * x_stride;
  const Weigh prob(x, e, sigmoid);
  for (int64_t j = lane; j < e; j += 32) probs[i * e + j] = prob(j);
  choose_experts(scores ? scores + i * s_stride : x, e, k, prob, normalize, experts + i * k,
                 weights + i * k);
}

// Lanes of the columns, as many as a power of two, take a row at a time, so that a warp of few columns
// has several; they add to sums of their own, and these are added in order.
__global__ void __launch_bounds__(1024)
    balance(const float* logits, int64_t stride, int64_t t, int64_t e, bool classical,
            double tolerance, double epsilon, int64_t most, int lanes, float* balanced,
            int32_t* iterations) {
  extern __shared__ double memory[];
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
  double *d1 = memory, *before = d1 + e, *sums = before + e, *own = sums + group * e;
  const auto cost = [&](int64_t i, int64_t j) {
    return exp(2.0 * static_cast<double>(logits[i * stride + j]));
  };
  const auto row_factor = [&](int64_t i, const double* d) {
    double sum = 0;
    for (int64_t j = lane; j < e && i < t; j += lanes) sum += d[j] * cost(i, j);
    for (int across = lanes / 2; across > 0; across /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, across);
    return 1 / (static_cast<double>(t) * (sum + epsilon));
  };
  // All lanes of a warp go round together.
  const auto each_row = [&](auto&& body) {
    for (int64_t first = 0; first < t; first += groups) body(first + group);
  };
  // Column j's sum of factor(i) * cost, for the threads that have columns.
  const auto sum_columns = [&](auto&& factor) {
    for (int64_t j = lane; j < e; j += lanes) own[j] = 0;
    each_row([&](int64_t i) {
      const double f = factor(i);
      for (int64_t j = lane; j < e && i < t; j += lanes) own[j] += f * cost(i, j);
    });
    __syncthreads();
  };
  const auto column = [&](int64_t j) {
    double sum = 0;
    for (int g = 0; g < groups; g++) sum += sums[g * e + j];
    return sum;
  };
  sum_columns([](int64_t) { return 1.0; });
  for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
    d1[j] = classical ? 1 : 1 / (static_cast<double>(e) * column(j));
  __syncthreads();

  int32_t turns = 0;
  for (double change = INFINITY; t > 0 && change > tolerance && turns < most; turns++) {
    sum_columns([&](int64_t i) { return row_factor(i, d1); });
    double moved = 0;
    for (int64_t j = threadIdx.x; j < e; j += blockDim.x) {
      before[j] = d1[j];
      d1[j] = 1 / (static_cast<double>(e) * (column(j) + epsilon));
      moved += fabs(d1[j] - before[j]);
    }
    change = block_sum(moved) / static_cast<double>(e);
    __syncthreads();
  }
  each_row([&](int64_t i) {
    const double d0 = turns > 0 ? row_factor(i, before) : 1;
    for (int64_t j = lane; j < e && i < t; j += lanes)
      balanced[i * e + j] = static_cast<float>(d1[j] * cost(i, j) * d0);
  });
  if (threadIdx.x == 0) *iterations = turns;
}

template <class X>
__global__ void add_noise(const X* x, int64_t stride, int64_t t, int64_t d, const int32_t* seed,
                          float epsilon, float* y) {
  const uint32_t low = static_cast<uint32_t>(seed[0]), high = static_cast<uint32_t>(seed[1]);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < t * d; i += step) {
    const double u = uniform(low, high, static_cast<uint32_t>(i));
    y[i] = to_float(x[i / d * stride + i % d]) * static_cast<float>(1 + epsilon * (2 * u - 1));
  }
}

}  // namespace

void route_experts(Stream& s, In logits, Opt scores, int64_t k, bool sigmoid, bool normalize,
                   Out experts, Out weights, Out probs) {  // [t, e] -> [t, k], [t, k], [t, e]
  const int64_t t = logits.size(0), blocks = (t + kWarps - 1) / kWarps;
  if (t == 0) return;
  choose<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, s.handle>>>(
      logits.data<float>(), logits.stride(), scores ? scores.data<float>() : nullptr,
      scores ? scores.stride() : 0, t, logits.size(1), k, sigmoid, normalize,
      experts.data<int32_t>(), weights.data<float>(), probs.data<float>());
}
KERNEL(route_experts)

void sinkhorn(Stream& s, In logits, bool classical, float tolerance, float epsilon, int64_t most,
              Out balanced, Out iterations) {  // [t, e] -> [t, e], [1]
  constexpr int64_t kShared = 44 << 10;  // the rest of 48 KiB is for the reductions
  const int64_t t = logits.size(0), e = logits.size(1), bytes = e * int64_t{sizeof(double)};
  if (e == 0) {
    cudaMemsetAsync(iterations.data<int32_t>(), 0, sizeof(int32_t), s.handle);
    return;
  }
  int lanes = 32;
  while (lanes > 1 && lanes / 2 >= e) lanes /= 2;
  const int64_t fitting = (kShared / bytes - 2) * lanes / 32, warps = fitting < 32 ? fitting : 32;
  const int64_t groups = warps * 32 / lanes;
  balance<<<1, static_cast<unsigned>(32 * warps), static_cast<size_t>((groups + 2) * bytes),
            s.handle>>>(logits.data<float>(), logits.stride(), t, e, classical, tolerance, epsilon,
                        most, lanes, balanced.data<float>(), iterations.data<int32_t>());
}
KERNEL(sinkhorn)

void jitter(Stream& s, In x, In seed, float epsilon, Out y) {  // [t, d], [2] -> [t, d]
  const int64_t t = x.size(0), d = x.size(1), blocks = (t * d + 255) / 256;
  if (blocks == 0) return;
  with_float(x.dtype(), [&](auto xt) {
    using X = decltype(xt);
    add_noise<X><<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), 256, 0, s.handle>>>(
        x.data<X>(), x.stride(), t, d, seed.data<int32_t>(), epsilon, y.data<float>());
  });
}
KERNEL(jitter)

}  // namespace ss::cuda
