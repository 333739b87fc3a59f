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

  __device__ Amount& operator+=(const Amount& other) {
    mass += other.mass;
    count += other.count;
    return *this;
  }
};

enum class Measure { mass, count };
__device__ inline unsigned long long measured(const Amount& a, Measure by) {
  return by == Measure::mass ? a.mass : a.count;
}

struct Found {
  uint32_t key;  // of the weight
  Amount above;  // of all larger ones
  Amount equal;  // of those that have this key
};

// Keys have 29 bits, in the order of their weights: digits of 10, 10 and 9.
template <int Blocks, int Threads>
class Selection {
 public:
  static constexpr int kBins = 1024, kSlice = kBins / Blocks, kOwn = kBins / Threads;
  struct Memory {
    uint32_t count[kBins], low[kBins], high[kBins];  // of this block
    Amount first[kBins], next[kBins];                // of all: by the first digit; by a later one
    Amount of_warp[32];
    Amount above, equal;
    uint32_t bin;
  };

  // each(visit) calls visit(key, mass) for each weight of this thread.
  template <class Each>
  __device__ Selection(Memory& memory, Each each) : m_(memory) {
    count(0, 0, each, m_.first);
  }

  // The largest weight that, with all larger ones, reaches `goal`; of all there is enough.
  template <class Each>
  __device__ Found at(unsigned long long goal, Measure by, Each each) {
    Found found{0, {0, 0}, {0, 0}};
    for (int digit = 0; digit < 3; digit++) {
      if (digit > 0) count(found.key, digit, each, m_.next);
      find(digit > 0 ? m_.next : m_.first, goal, by, found.above);
      found.above = m_.above;
      found.equal = m_.equal;
      found.key = found.key << bits_of(digit) | m_.bin;
    }
    return found;
  }

 private:
  static __device__ int bits_of(int digit) { return digit < 2 ? 10 : 9; }
  static __device__ int below(int digit) { return digit == 0 ? 19 : digit == 1 ? 9 : 0; }

  template <class Each>
  __device__ void count(uint32_t prefix, int digit, Each each, Amount* all) {
    for (int i = threadIdx.x; i < kBins; i += Threads) m_.count[i] = m_.low[i] = m_.high[i] = 0;
    __syncthreads();
    const int shift = below(digit), bits = bits_of(digit);
    each([&](uint32_t key, unsigned long long mass) {
      const uint32_t through = key >> shift, bin = through & ((1u << bits) - 1);
      if (digit > 0 && through >> bits != prefix) return;
      const auto low = static_cast<uint32_t>(mass);
      const uint32_t carry = atomicAdd(&m_.low[bin], low) > ~low;
      const uint32_t high = static_cast<uint32_t>(mass >> 32) + carry;
      if (high) atomicAdd(&m_.high[bin], high);
      atomicAdd(&m_.count[bin], 1u);
    });
    // Each block sums a slice of the bins and tells all others.
    Team<Blocks>::sync();
    const int slice = Team<Blocks>::rank() * kSlice;
    for (int i = slice + threadIdx.x; i < slice + kSlice; i += Threads) {
      Amount sum{0, 0};
#pragma unroll
      for (int r = 0; r < Blocks; r++) {
        const Memory& other = *Team<Blocks>::of(&m_, r);
        sum += {static_cast<unsigned long long>(other.high[i]) << 32, other.count[i]};
        sum.mass += other.low[i];
      }
#pragma unroll
      for (int r = 0; r < Blocks; r++) *Team<Blocks>::of(all + i, r) = sum;
    }
    Team<Blocks>::sync();
  }

  static __device__ Amount running_sum(Amount x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Amount before{__shfl_up_sync(0xffffffffu, x.mass, step),
                          __shfl_up_sync(0xffffffffu, x.count, step)};
      if (lane >= step) x += before;
    }
    return x;
  }

  // Leaves the bin where `above` and the bins from the last one down to it reach `goal`.
  __device__ void find(const Amount* all, unsigned long long goal, Measure by, const Amount& above) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, last = kBins - 1 - threadIdx.x * kOwn;
    Amount own[kOwn], sum{0, 0};
#pragma unroll
    for (int e = 0; e < kOwn; e++) sum += own[e] = all[last - e];
    Amount through = running_sum(sum);
    if (lane == 31) m_.of_warp[warp] = through;
    __syncthreads();
    Amount before = above;
    for (int w = 0; w < warp; w++) before += m_.of_warp[w];
    through += before;
    Amount start{through.mass - sum.mass, through.count - sum.count};
    if (measured(through, by) >= goal && measured(start, by) < goal) {
      for (int e = 0; e < kOwn; e++, start += own[e - 1]) {
        if (measured(start, by) + measured(own[e], by) < goal) continue;
        m_.above = start;
        m_.equal = own[e];
        m_.bin = static_cast<uint32_t>(last - e);
        break;
      }
    }
    __syncthreads();
  }

  Memory& m_;
};

}  // namespace ss::cuda
