// Finds the weight at which a sum over falling weights reaches a goal, without sorting them all: a
// histogram says in which bin; then either the few weights of that bin are gathered and sorted by one
// block, or all blocks go on with the digits below. Masses are whole numbers, so that sums do not
// depend on the order in which they are taken.
//
// A weight in [0, 1] is a key of the same order: the weight in units of 2^-40 as far as 2^-17, where
// its last bit is as much, and from there on the bits of the float. A bin is a key without its last
// 17 bits, a 64th of an octave. Within it masses are linear in those bits, so that two sums of 32
// bits, of ones and of last bits, are the exact mass of a bin of up to 2^15 weights.
#pragma once
#include <stdint.h>

#include "team.cuh"

namespace ss::cuda {

using Mass = unsigned long long;

// Of many weights: their sum, and how many.
struct alignas(16) Amount {
  Mass mass;
  uint32_t count;

  __device__ Amount operator+(const Amount& other) const {
    return {mass + other.mass, count + other.count};
  }
  __device__ Amount operator-(const Amount& other) const {
    return {mass - other.mass, count - other.count};
  }
};

enum class Measure { mass, count };

constexpr int kLowBits = 17;
constexpr uint32_t kLow = (1u << kLowBits) - 1;
constexpr uint32_t kLinear = 1u << 23;  // keys below it are masses

// `least`: the smallest weight that is its own float, 2^-17.
__device__ inline uint32_t key_of(float weight, float least) {
  return __float_as_uint(weight + fmaxf(weight, least)) - __float_as_uint(least);
}
__device__ inline Mass mass_of(uint32_t key) {
  const uint32_t octave = key >> 23;
  return octave ? static_cast<Mass>((key & 0x7fffffu) | 0x800000u) << (octave - 1) : key;
}

struct Found {
  uint32_t prefix;  // the key of the weight, but for its last `shift` bits
  int shift;        // of what `at` finds above 0 only where one weight alone has this prefix
  Amount above;     // of all larger ones
  Amount equal;     // of those that have this prefix
};

constexpr int kBuckets = 170;  // for the items of a span; three spans

// Bins that a goal may fall into, from the last one down.
struct Span {
  uint32_t low = 0, width = 0;  // keys
  Amount above{};               // of larger ones
  uint32_t count = 0;

  __device__ Span() {}
  __device__ Span(const Found& last, const Found& first)
      : low(last.prefix << kLowBits),
        width((first.prefix - last.prefix + 1) << kLowBits),
        above(first.above),
        count(last.above.count + last.equal.count - first.above.count) {}
  __device__ bool has(uint32_t key) const { return key - low < width; }
  __device__ uint32_t last() const { return low + width - 1; }  // the largest key of it
  __device__ float scale() const { return kBuckets / static_cast<float>(width); }
};

// Wide: for more than 2^15 weights a block.
template <class Team, bool Wide>
class Selection {
 public:
  static constexpr int kBins = 18 * 64 + 1, kDigits = 512, kRoom = 1024;
  static constexpr int kEach = (kBins + Team::kThreads - 1) / Team::kThreads;
  // From three blocks on each adds up some of the bins for all: reaching into others is slow.
  static constexpr bool kShared = Team::kBlocks > 2;
  static_assert(kDigits == Team::kThreads && kBins <= kDigits + kRoom && kRoom == 2 * kDigits);
  static_assert(3 * kBuckets <= kDigits);
  struct Memory {
    uint2 bins[kDigits + kRoom];         // ones, last bits; later digits, and a list behind them
    uint32_t carries[Wide ? kBins : 1];  // of the last bits
    Amount totals[kShared ? kBins : 1];
    Amount of_warp[Team::kWarps];
    Found found[4];
    Amount start[3];  // of the list, before each span
    uint32_t listed;
  };

  explicit __device__ Selection(Memory& memory) : m_(memory) {}

  // Comes first; a barrier must follow.
  __device__ void clear() {
    clear_bins(kBins);
    if (threadIdx.x == 0) m_.listed = 0;
  }
  __device__ void put(uint32_t key) { put(key >> kLowBits, key & kLow); }

  // After a barrier for the whole team: adds up what all have put, and `tail`, which is in bin 0.
  __device__ void add_up(const Amount& tail) {
    const auto amount_of = [&](int bin) { return bin > 0 ? amount(bin, bin) : tail; };
    if constexpr (kShared) {
      constexpr int slice = (kBins + Team::kBlocks - 1) / Team::kBlocks;
      const int begin = Team::rank() * slice, end = min(kBins, begin + slice);
      for (int bin = begin + static_cast<int>(threadIdx.x); bin < end; bin += Team::kThreads) {
        const Amount sum = amount_of(bin);
#pragma unroll
        for (int i = 0; i < Team::kBlocks; i++) store_whole(Team::of(&m_.totals[bin], i), sum);
      }
      Team::sync();
    }
    const int first = kBins - 1 - kEach * static_cast<int>(threadIdx.x);
    Amount sum{0, 0};
#pragma unroll
    for (int j = 0; j < kEach; j++) {
      own_[j] = first - j < 0 ? Amount{0, 0} : kShared ? m_.totals[first - j] : amount_of(first - j);
      sum = sum + own_[j];
    }
    if constexpr (!kShared) Team::arrive();
    above_ = sum_before(sum, total_);
  }
  // Until the bins are nobody's any more.
  __device__ void await_others() {
    if constexpr (!kShared) Team::wait();
  }

  __device__ const Amount& total() const { return total_; }

  // The bin of the largest weight that, with all larger ones, reaches `goal`; there is enough.
  __device__ Found bin_at(Mass goal, Measure by) {
    return search(own_, above_, goal, by, kBins - 1 - kEach * static_cast<int>(threadIdx.x),
                  Found{0, kLowBits, {}, {}});
  }

  // Of two goals of mass.
  __device__ void bins_at(Mass goal, Mass other_goal, Found& at, Found& other_at) {
    const int first = kBins - 1 - kEach * static_cast<int>(threadIdx.x);
    Found& answer = next_answer();
    Found& other_answer = next_answer();
    find(own_, above_, goal, Measure::mass, first, Found{0, kLowBits, {}, {}}, answer);
    find(own_, above_, other_goal, Measure::mass, first, Found{0, kLowBits, {}, {}}, other_answer);
    __syncthreads();
    at = answer;
    other_at = other_answer;
  }

  // That weight, by all blocks. each(visit) calls visit(key) for each weight of this thread.
  template <class Each>
  __device__ __forceinline__ Found at(Mass goal, Measure by, Each each) {
    Found found = bin_at(goal, by);
    const uint32_t bin = found.prefix;
#pragma unroll 1  // code that runs once must be fetched: one copy of it
    while (found.shift > 0 && found.equal.count > 1) {
      const int bits = found.shift == kLowBits ? 9 : 8, shift = found.shift - bits;
      Team::sync();
      clear_bins(kDigits);
      Team::sync();
      each([&](uint32_t key) {
        if (key && key >> found.shift == found.prefix)
          put(key >> shift & ((1u << bits) - 1), key & kLow);
      });
      Team::sync();
      const int digit = kDigits - 1 - static_cast<int>(threadIdx.x);
      Amount own[1] = {digit < 0 ? Amount{0, 0} : amount(bin, digit)}, all;
      const Amount before = sum_before(own[0], all);
      found.prefix <<= bits;
      found.shift = shift;
      found = search(own, found.above + before, goal, by, digit, found);
    }
    return found;
  }

  // Up to kRoom keys with their ids go to the first block.
  __device__ void list(uint32_t key, uint32_t id) {
    const uint32_t place = atomicAdd(Team::of(&m_.listed, 0), 1u);
    Team::of(items(), 0)[place] = static_cast<Mass>(key) << 32 | ~id;
  }
  // There, after a barrier: sorts them by falling key, the smaller id first where keys are equal. They
  // are all that the spans have, of which each lies below or within the one before. Items go into
  // buckets, places in their order, and are then compared with those of their own bucket.
  __device__ __forceinline__ void sort(const Span (&spans)[3]) {
    const uint32_t t = threadIdx.x, n = m_.listed;
    auto* ends = reinterpret_cast<uint32_t*>(m_.bins);
    auto* order = reinterpret_cast<uint16_t*>(ends + kDigits);
    const uint32_t largest[3] = {spans[0].last(), spans[1].last(), spans[2].last()};
    const float scales[3] = {spans[0].scale(), spans[1].scale(), spans[2].scale()};
    const auto bucket = [&](Mass item) {
      const auto key = static_cast<uint32_t>(item >> 32);
      const int s = spans[0].has(key) ? 0 : spans[1].has(key) ? 1 : 2;
      const uint32_t most = s == 0 ? largest[0] : s == 1 ? largest[1] : largest[2];
      const float scale = s == 0 ? scales[0] : s == 1 ? scales[1] : scales[2];
      return s * kBuckets + min(kBuckets - 1, static_cast<int>(static_cast<float>(most - key) * scale));
    };
    ends[t] = 0;
    __syncthreads();
    for (uint32_t i = t; i < n; i += Team::kThreads) atomicAdd(&ends[bucket(items()[i])], 1u);
    __syncthreads();
    Amount all;
    const Amount before = sum_before({0, ends[t]}, all);
    ends[t] = before.count;
    __syncthreads();
    for (uint32_t i = t; i < n; i += Team::kThreads)
      order[atomicAdd(&ends[bucket(items()[i])], 1u)] = static_cast<uint16_t>(i);
    __syncthreads();
    Mass own[2];
    uint32_t place[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const uint32_t i = t + j * Team::kThreads;
      if (i >= n) break;
      own[j] = items()[order[i]];
      const int b = bucket(own[j]);
      const uint32_t begin = b > 0 ? ends[b - 1] : 0, end = ends[b];
      place[j] = begin;
      for (uint32_t other = begin; other < end; other++) place[j] += items()[order[other]] > own[j];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; j++)
      if (t + j * Team::kThreads < n) items()[place[j]] = own[j];
    __syncthreads();
    set_items(spans);
  }
  // The weight of span `s` that, with all larger ones and equal ones of smaller ids, reaches `goal`:
  // its id, and what there is up to it.
  __device__ uint32_t id_at(int s, const Span& span, Mass goal, Measure by, Amount& through) {
    Amount above = span.above + (above_ - m_.start[s]);
    Found& answer = next_answer();
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const Amount next = above + own_[j];
      if (span.has(keys_[j]) && reaches(above, next, goal, by)) {
        answer.prefix = ~static_cast<uint32_t>(items()[2 * threadIdx.x + j]);
        answer.above = next;
      }
      above = next;
    }
    __syncthreads();
    through = answer.above;
    return answer.prefix;
  }

 private:
  // Each thread has two items; where a span begins is for all to know.
  __device__ __forceinline__ void set_items(const Span (&spans)[3]) {
    const uint32_t i = 2 * threadIdx.x, n = m_.listed;
    const uint32_t before_key = i > 0 && i <= n ? key_at(i - 1) : ~0u;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      keys_[j] = i + j < n ? key_at(i + j) : 0;
      own_[j] = {mass_of(keys_[j]), keys_[j] > 0};
    }
    Amount all;
    above_ = sum_before(own_[0] + own_[1], all);
#pragma unroll
    for (int s = 0; s < 3; s++) {
      const bool before = spans[s].has(before_key), first = spans[s].has(keys_[0]);
      if (own_[0].count && first && !before) m_.start[s] = above_;
      if (own_[1].count && spans[s].has(keys_[1]) && !first) m_.start[s] = above_ + own_[0];
    }
    __syncthreads();
  }

  __device__ Mass* items() const { return reinterpret_cast<Mass*>(m_.bins + kDigits); }
  __device__ uint32_t key_at(uint32_t i) const { return static_cast<uint32_t>(items()[i] >> 32); }

  __device__ void clear_bins(int count) {
    for (int i = threadIdx.x; i < count; i += Team::kThreads) {
      m_.bins[i] = {0, 0};
      if constexpr (Wide) m_.carries[i] = 0;
    }
  }
  __device__ void put(uint32_t place, uint32_t low) {
    atomicAdd(&m_.bins[place].x, 1u);
    if constexpr (Wide) {
      if (atomicAdd(&m_.bins[place].y, low) > ~low) atomicAdd(&m_.carries[place], 1u);
    } else {
      atomicAdd(&m_.bins[place].y, low);
    }
  }
  // Of the weights that all blocks have put at `place`, those of bin `bin`.
  __device__ Amount amount(uint32_t bin, int place) const {
    uint32_t count = 0;
    Mass low = 0;
#pragma unroll
    for (int i = 0; i < Team::kBlocks; i++) {
      const int rank = (Team::rank() + i) % Team::kBlocks;
      const uint2 other = *Team::of(&m_.bins[place], rank);
      count += other.x;
      low += other.y;
      if constexpr (Wide) low += Mass{*Team::of(&m_.carries[place], rank)} << 32;
    }
    const uint32_t octave = bin >> 6;
    return {count * mass_of(bin << kLowBits) + (low << (octave ? octave - 1 : 0)), count};
  }

  // The sum over the threads before this one, and over all.
  __device__ Amount sum_before(Amount own, Amount& all) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Amount in_warp = running_sum(own);
    if (lane == 31) m_.of_warp[warp] = in_warp;
    __syncthreads();
    const Amount warps = running_sum(m_.of_warp[lane % Team::kWarps]);
    all = from_lane(warps, Team::kWarps - 1);
    const Amount before = from_lane(warps, max(0, warp - 1));
    return (warp > 0 ? before : Amount{0, 0}) + in_warp - own;
  }
  static __device__ Amount from_lane(const Amount& x, int lane) {
    return {__shfl_sync(0xffffffffu, x.mass, lane), __shfl_sync(0xffffffffu, x.count, lane)};
  }
  static __device__ __forceinline__ Amount running_sum(Amount x) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      const Amount before{__shfl_up_sync(0xffffffffu, x.mass, step),
                          __shfl_up_sync(0xffffffffu, x.count, step)};
      if (lane >= step) x = x + before;
    }
    return x;
  }

  static __device__ bool reaches(const Amount& above, const Amount& through, Mass goal, Measure by) {
    return by == Measure::mass ? above.mass < goal && through.mass >= goal
                               : above.count < goal && through.count >= goal;
  }
  // Of one thread: `own` of the places from `first` down, after `above`.
  template <int N>
  __device__ __forceinline__ Found search(const Amount (&own)[N], Amount above, Mass goal, Measure by,
                                          int first, Found found) {
    Found& answer = next_answer();
    find(own, above, goal, by, first, found, answer);
    __syncthreads();
    return answer;
  }
  template <int N>
  static __device__ __forceinline__ void find(const Amount (&own)[N], Amount above, Mass goal, Measure by,
                                              int first, const Found& found, Found& answer) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      const Amount through = above + own[j];
      if (reaches(above, through, goal, by))
        answer = {found.prefix | static_cast<uint32_t>(first - j), found.shift, above, own[j]};
      above = through;
    }
  }
  // By turns: others may still read the last ones.
  __device__ Found& next_answer() { return m_.found[turn_++ & 3]; }

  // As one access of 16 bytes.
  static __device__ void store_whole(Amount* to, const Amount& sum) {
    *reinterpret_cast<uint4*>(to) = {static_cast<uint32_t>(sum.mass), static_cast<uint32_t>(sum.mass >> 32),
                                     sum.count, 0};
  }

  Memory& m_;
  Amount own_[kEach], above_{}, total_{};  // of the thread's bins, from the last one down; or items
  uint32_t keys_[2] = {0, 0};              // of its items
  uint32_t turn_ = 0;
};

}  // namespace ss::cuda
