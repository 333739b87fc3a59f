// Finds the weight at which a sum over falling weights reaches a goal, by its digits and without
// sorting: a histogram for each digit, of the weights that have the digits found so far. Masses are
// whole numbers, so that sums do not depend on the order in which they are taken.
#pragma once
#include <stdint.h>

#include "team.cuh"

namespace ss::cuda {

// Of many weights: how many, and their sum.
struct Amount {
  unsigned long long mass;
  uint32_t count;
};

enum class Measure { mass, count };

struct Found {
  uint32_t prefix;  // the key of the weight, but for its last `shift` bits
  int shift;        // more than 0 only where one weight alone has this prefix
  Amount above;     // of all larger ones
  Amount equal;     // of those that have this prefix
};

// Keys have 29 bits, in the order of their weights: digits of 10, 10 and 9. A thread for each bin.
template <int Blocks>
class Selection {
 public:
  static constexpr int kBins = 1024;
  struct Memory {
    uint32_t count[kBins], low[kBins], high[kBins];  // of this block
    Amount first[kBins], next[kBins];                // of all: by the first digit; by a later one
    Amount of_warp[32];
    Amount above, equal;
    uint32_t bin;
  };

  explicit __device__ Selection(Memory& memory) : m_(memory) {}

  // The largest weight that, with all larger ones, reaches `goal`; of all there is enough.
  // each(visit) calls visit(key, mass) for each weight of this thread.
  template <class Each>
  __device__ __forceinline__ Found at(unsigned long long goal, Measure by, Each each) {
    Found found{0, 29, {0, 0}, {0, 0}};
#pragma unroll 1  // code that runs once must be fetched: one copy of it
    do {
      const int bits = found.shift > 9 ? 10 : 9;
      Amount* all = found.shift == 29 ? m_.first : m_.next;
      if (found.shift < 29 || !counted_) count(found, bits, each, all);
      counted_ = true;
      find(all, goal, by, found);
      found.shift -= bits;
    } while (found.shift > 0 && found.equal.count > 1);
    return found;
  }

 private:
  template <class Each>
  __device__ __forceinline__ void count(const Found& found, int bits, Each each, Amount* all) {
    const int t = threadIdx.x, shift = found.shift - bits;
    m_.count[t] = m_.low[t] = m_.high[t] = 0;
    __syncthreads();
    each([&](uint32_t key, unsigned long long mass) {
      if (key >> found.shift != found.prefix) return;
      const uint32_t bin = key >> shift & ((1u << bits) - 1), low = static_cast<uint32_t>(mass);
      const uint32_t carry = atomicAdd(&m_.low[bin], low) > ~low;
      const uint32_t high = static_cast<uint32_t>(mass >> 32) + carry;
      if (high) atomicAdd(&m_.high[bin], high);
      atomicAdd(&m_.count[bin], 1u);
    });
    Team<Blocks>::sync();
    // Each block sums a slice of the bins, with as many threads a bin as there are blocks, and each
    // of these tells one block.
    const int i = (Team<Blocks>::rank() * kBins + t) / Blocks, block = t % Blocks;
    const Memory& other = *Team<Blocks>::of(&m_, block);
    Amount sum{(static_cast<unsigned long long>(other.high[i]) << 32) + other.low[i], other.count[i]};
#pragma unroll
    for (int lane = Blocks / 2; lane > 0; lane /= 2) {
      sum.mass += __shfl_xor_sync(0xffffffffu, sum.mass, lane);
      sum.count += __shfl_xor_sync(0xffffffffu, sum.count, lane);
    }
    *Team<Blocks>::of(all + i, block) = sum;
    Team<Blocks>::sync();
  }

  static __device__ __forceinline__ Amount running_sum(Amount x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Amount before{__shfl_up_sync(0xffffffffu, x.mass, step),
                          __shfl_up_sync(0xffffffffu, x.count, step)};
      if (lane < step) continue;
      x.mass += before.mass;
      x.count += before.count;
    }
    return x;
  }

  // Adds the bin where `above` and the bins from the last one down to it reach `goal`.
  __device__ __forceinline__ void find(const Amount* all, unsigned long long goal, Measure by,
                                       Found& found) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, bin = kBins - 1 - threadIdx.x;
    const Amount own = all[bin], in_warp = running_sum(own);
    if (lane == 31) m_.of_warp[warp] = in_warp;
    __syncthreads();
    const Amount warps = running_sum(m_.of_warp[lane]);
    Amount start{found.above.mass + in_warp.mass - own.mass,
                 found.above.count + in_warp.count - own.count};
    const Amount before{__shfl_sync(0xffffffffu, warps.mass, max(0, warp - 1)),
                        __shfl_sync(0xffffffffu, warps.count, max(0, warp - 1))};
    if (warp > 0) start = {start.mass + before.mass, start.count + before.count};
    const unsigned long long low = by == Measure::mass ? start.mass : start.count;
    if (low < goal && low + (by == Measure::mass ? own.mass : own.count) >= goal) {
      m_.above = start;
      m_.equal = own;
      m_.bin = static_cast<uint32_t>(bin);
    }
    __syncthreads();
    found.above = m_.above;
    found.equal = m_.equal;
    found.prefix = found.prefix << (found.shift > 9 ? 10 : 9) | m_.bin;
  }

  Memory& m_;
  bool counted_ = false;
};

}  // namespace ss::cuda
