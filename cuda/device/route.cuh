// A token's experts, chosen by one warp from the row of its logits in shared or global memory.
#pragma once
#include <math.h>

#include "order.cuh"
#include "reduce.cuh"

namespace ss::cuda {

__device__ inline unsigned long long warp_most(unsigned long long x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, x, lane);
    x = other > x ? other : x;
  }
  return x;
}

// The weight of an expert: the softmax over all of them, or the sigmoid of its own logit.
struct Weigh {
  const float* x;
  bool sigmoid;
  float most = -INFINITY, total = 0;

  __device__ Weigh(const float* x, int64_t e, bool sigmoid) : x(x), sigmoid(sigmoid) {
    if (sigmoid) return;
    const int lane = threadIdx.x % 32;
    bool nan = false;
    for (int64_t j = lane; j < e; j += 32) most = fmaxf(most, x[j]), nan |= x[j] != x[j];
    most = __any_sync(0xffffffffu, nan) ? NAN : warp_max(most);
    for (int64_t j = lane; j < e; j += 32) total += expf(x[j] - most);
    total = warp_sum(total);
  }
  __device__ float operator()(int64_t j) const {
    return sigmoid ? 1.0f / (1.0f + expf(-x[j])) : expf(x[j] - most) / total;
  }
};

// The largest key below `last`; that of an expert is larger than those of all that come after it: none
// equals another.
__device__ inline unsigned long long best_below(const float* score, int64_t e,
                                                unsigned long long last) {
  unsigned long long best = 0;
  for (int64_t j = threadIdx.x % 32; j < e; j += 32) {
    const unsigned long long key = static_cast<unsigned long long>(key_of(score[j])) << 32 |
                                   (0xfffffffeu - static_cast<uint32_t>(j));
    if (key < last && key > best) best = key;
  }
  return warp_most(best);
}
__device__ inline int32_t expert_of(unsigned long long key) {
  return static_cast<int32_t>(0xfffffffeu - static_cast<uint32_t>(key));
}
// The best one alone.
__device__ inline int best_of(const float* score, int e) {
  const int lane = threadIdx.x % 32;
  uint32_t most = 0;
  int best = 0;
  for (int first = 0; first < e; first += 32) {
    const bool there = first + lane < e;
    const uint32_t key = there ? key_of(score[first + lane]) : 0;
    const uint32_t here = __reduce_max_sync(0xffffffffu, key);
    const uint32_t with = __ballot_sync(0xffffffffu, there && key == here);
    if (first > 0 && here <= most) continue;
    most = here, best = first + __ffs(static_cast<int>(with)) - 1;
  }
  return best;
}

// Calls each(c, expert, weight), all lanes with the same, for the k best of e by `score`, best
// first. Returns the sum of their weights.
template <class F>
__device__ inline float each_best(const float* score, int64_t e, int64_t k, const Weigh& weigh,
                                  F&& each) {
  unsigned long long last = ~0ull;
  float sum = 0;
  for (int64_t c = 0; c < k; c++) {
    last = best_below(score, e, last);
    const int32_t expert = expert_of(last);
    const float weight = weigh(expert);
    sum += weight;
    each(c, expert, weight);
  }
  return sum;
}

// Writes them down.
__device__ inline void choose_experts(const float* score, int64_t e, int64_t k, const Weigh& weigh,
                                      bool normalize, int32_t* experts, float* weights) {
  const int lane = threadIdx.x % 32;
  const float sum = each_best(score, e, k, weigh, [&](int64_t c, int32_t expert, float weight) {
    if (lane == 0) experts[c] = expert, weights[c] = weight;
  });
  if (!normalize) return;
  __syncwarp();
  for (int64_t c = lane; c < k; c += 32) weights[c] /= sum;
}

}  // namespace ss::cuda
