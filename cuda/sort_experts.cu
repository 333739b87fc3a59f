// From each token's experts to each expert's tokens. One block an expert, of 1,024 threads: it
// reads all assignments (4 bytes each, from the cache but for the first block) and keeps the order
// of positions by running sums, so nothing depends on which thread comes first.
#include <math.h>

#include "device/order.cuh"
#include "device/reduce.cuh"
#include "device/scan_block.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 1024;

struct Choices {  // [t, k]
  const float* score;
  const int32_t* expert;  // null: column j is expert j
  int64_t score_stride, expert_stride, t, k;
};

__global__ void fill(int32_t* to, int64_t n, int32_t value) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += step) to[i] = value;
}

// Finds the key of the capacity-th best choice of this block's expert, eight bits at a time, and
// keeps what is above it, and of what equals it the earliest.
__global__ void __launch_bounds__(kThreads) limit(const Choices c, int64_t capacity, int32_t* kept) {
  __shared__ int count[256];
  __shared__ uint32_t found_key;
  __shared__ int64_t room;
  const int expert = static_cast<int>(blockIdx.x);
  const int64_t n = c.expert ? c.t * c.k : c.t;
  const auto place = [&](int64_t i) { return c.expert ? i : i * c.k + expert; };
  const auto mine = [&](int64_t i) {
    return !c.expert || c.expert[i / c.k * c.expert_stride + i % c.k] == expert;
  };
  const auto key = [&](int64_t i) {
    const int64_t at = place(i);
    return key_of(c.score[at / c.k * c.score_stride + at % c.k]);
  };
  int own = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) own += mine(i);
  const int64_t total = block_sum(own);
  if (threadIdx.x == 0) found_key = 0, room = total <= capacity ? total : capacity;
  __syncthreads();
  for (int shift = 24; shift >= 0 && total > capacity; shift -= 8) {
    if (threadIdx.x < 256) count[threadIdx.x] = 0;
    __syncthreads();
    const uint32_t above = shift == 24 ? 0 : ~0u << (shift + 8), so_far = found_key;
    for (int64_t i = threadIdx.x; i < n; i += kThreads)
      if (mine(i) && (key(i) & above) == so_far) atomicAdd(&count[key(i) >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      for (; room > count[digit]; digit--) room -= count[digit];
      found_key |= static_cast<uint32_t>(digit) << shift;
    }
    __syncthreads();
  }
  const uint32_t last = found_key;
  int64_t equal = 0;  // seen so far
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool is = i < n && mine(i);
    const uint32_t own_key = is ? key(i) : 0;
    const int through = block_running_sum(static_cast<int>(is && own_key == last));
    if (is && (own_key > last || (own_key == last && equal + through <= room)))
      kept[place(i)] = expert;
    equal += __syncthreads_count(is && own_key == last);
  }
}

// Block i has expert i, the last block what is dropped.
__global__ void __launch_bounds__(kThreads)
    sort(const int32_t* experts, int64_t n, int64_t e, int32_t* order, int32_t* place,
         int32_t* offsets, Fault* fault) {
  const int expert = static_cast<int>(blockIdx.x);
  int below = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) below += experts[i] >= 0 && experts[i] < expert;
  int64_t at = block_sum(below);
  if (threadIdx.x == 0) offsets[expert] = static_cast<int32_t>(at);
  if (expert == e) {
    for (int64_t i = at + threadIdx.x; i < n; i += kThreads) order[i] = -1;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      if (experts[i] < 0 || experts[i] >= e) place[i] = -1;
      if (experts[i] >= e) fault->report(i, experts[i], e);
    }
    return;
  }
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool is = i < n && experts[i] == expert;
    const int through = block_running_sum(static_cast<int>(is));
    if (is) {
      place[i] = static_cast<int32_t>(at + through - 1);
      order[at + through - 1] = static_cast<int32_t>(i);
    }
    at += __syncthreads_count(is);
  }
}

struct Statistics {
  float *balance, *z, *entropy;
  int32_t *load, *dropped, *unserved;
};

// One block. Lanes of the columns, as many as a power of two, take a row at a time, so that a warp of few
// columns has several; their sums are added in order.
__global__ void __launch_bounds__(kThreads)
    count(const float* logits, int64_t stride, int64_t t, int64_t e, const int32_t* experts,
          int64_t experts_stride, const int32_t* kept, int64_t kept_stride, int64_t k, int lanes,
          Statistics out) {
  extern __shared__ double memory[];
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
  double *sums = memory, *own = sums + group * e;
  int *chosen = reinterpret_cast<int*>(sums + groups * e), *load = chosen + e;
  const auto together_of = [&](auto x, auto&& join) {
    for (int across = lanes / 2; across > 0; across /= 2)
      x = join(x, __shfl_xor_sync(0xffffffffu, x, across));
    return x;
  };
  for (int64_t j = lane; j < e; j += lanes) own[j] = 0;
  for (int64_t j = threadIdx.x; j < e; j += blockDim.x) chosen[j] = load[j] = 0;
  __syncthreads();
  double squares = 0;
  int lost = 0, alone = 0, all = 0;
  for (int64_t first = 0; first < t; first += groups) {  // all lanes of a warp go round together
    const int64_t i = first + group;
    const int64_t columns = i < t ? e : 0, choices = i < t ? k : 0;
    const float* x = logits + i * stride;
    float most = -INFINITY;
    for (int64_t j = lane; j < columns; j += lanes) most = fmaxf(most, x[j]);
    most = together_of(most, [](float a, float b) { return fmaxf(a, b); });
    double total = 0;
    for (int64_t j = lane; j < columns; j += lanes) total += expf(x[j] - most);
    total = together_of(total, [](double a, double b) { return a + b; });
    const double share = 1 / total;
    for (int64_t j = lane; j < columns; j += lanes) own[j] += expf(x[j] - most) * share;
    const double sum = lane == 0 && i < t ? most + log(total) : 0;
    squares += sum * sum;
    int served = 0;
    for (int64_t j = lane; j < choices; j += lanes) {
      const int32_t to = experts[i * experts_stride + j], at = kept[i * kept_stride + j];
      if (to >= 0 && to < e) atomicAdd(&chosen[to], 1), all++;
      if (at >= 0 && at < e) atomicAdd(&load[at], 1), served = 1;
      lost += to >= 0 && at < 0;
    }
    served = together_of(served, [](int a, int b) { return a | b; });
    if (!served && lane == 0 && i < t) alone++;
  }
  squares = block_sum(squares);
  lost = block_sum(lost), alone = block_sum(alone), all = block_sum(all);
  double together = 0, spread = 0;
  for (int64_t j = threadIdx.x; j < e; j += blockDim.x) {
    out.load[j] = load[j];
    const double share = all > 0 ? static_cast<double>(chosen[j]) / all : 0;
    double mean = 0;
    for (int g = 0; g < groups; g++) mean += sums[g * e + j];
    if (t > 0) together += share * mean / static_cast<double>(t);
    if (share > 0) spread -= share * log(share);
  }
  together = block_sum(together), spread = block_sum(spread);
  if (threadIdx.x > 0) return;
  *out.balance = static_cast<float>(static_cast<double>(e) * together);
  *out.z = static_cast<float>(t > 0 && e > 0 ? squares / static_cast<double>(t) : 0);
  *out.entropy = static_cast<float>(spread);
  *out.dropped = lost, *out.unserved = alone;
}

}  // namespace

void limit_experts(Stream& s, In scores, Opt experts, int64_t e, int64_t capacity, Out kept) {
  const int64_t t = scores.size(0), k = scores.size(1), n = t * k, blocks = experts ? e : k;
  if (n == 0) return;
  fill<<<static_cast<unsigned>(n < 1 << 20 ? (n + 255) / 256 : 4096), 256, 0, s.handle>>>(
      kept.data<int32_t>(), n, -1);
  if (capacity == 0 || blocks == 0) return;
  const Choices c{scores.data<float>(), experts ? experts.data<int32_t>() : nullptr, scores.stride(),
                  experts ? experts.stride() : 0, t, k};
  limit<<<static_cast<unsigned>(blocks), kThreads, 0, s.handle>>>(c, capacity, kept.data<int32_t>());
}
KERNEL(limit_experts)

void sort_experts(Stream& s, In experts, int64_t e, Out order, Out place, Out offsets) {
  sort<<<static_cast<unsigned>(e + 1), kThreads, 0, s.handle>>>(
      experts.data<int32_t>(), experts.size(0), e, order.data<int32_t>(), place.data<int32_t>(),
      offsets.data<int32_t>(), s.fault("experts[%lld] is %d, expected less than %lld"));
}
KERNEL(sort_experts)

void router_statistics(Stream& s, In logits, In experts, In kept, Out balance, Out z, Out load,
                       Out entropy, Out dropped, Out unserved) {
  constexpr int64_t kShared = 44 << 10;  // the rest of 48 KiB is for the reductions
  const int64_t t = logits.size(0), e = logits.size(1);
  int lanes = 32;
  while (lanes > 1 && lanes / 2 >= e) lanes /= 2;
  const int64_t fitting = e > 0 ? (kShared / (e * 8) - 1) * lanes / 32 : 32;
  const int64_t warps = fitting < 32 ? fitting : 32, groups = warps * 32 / lanes;
  const Statistics out{balance.data<float>(),  z.data<float>(),         entropy.data<float>(),
                       load.data<int32_t>(),   dropped.data<int32_t>(), unserved.data<int32_t>()};
  count<<<1, static_cast<unsigned>(32 * warps), static_cast<size_t>((groups + 1) * e * 8), s.handle>>>(
      logits.data<float>(), logits.stride(), t, e, experts.data<int32_t>(), experts.stride(),
      kept.data<int32_t>(), kept.stride(), experts.size(1), lanes, out);
}
KERNEL(router_statistics)

}  // namespace ss::cuda
