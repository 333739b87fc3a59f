// Finds the weight at which a sum over falling weights reaches a goal, without sorting them all: a
// histogram says in which bin; then either the few weights of that bin are listed and put in order by one
// block (shortlist.cuh), or all blocks go on with the digits below. Masses are whole numbers, so that sums do not
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

// Bins that a goal may fall into, from the last one down. No weight in them is 0.
struct Span {
  uint32_t low = 0, width = 0;  // keys
  Amount above{}, through{};    // of larger ones, and with those of the span
  uint32_t count = 0;

  __device__ Span() {}
  __device__ Span(const Found& last, const Found& first)
      : low(max(1u, last.prefix << kLowBits)),
        width(((first.prefix + 1) << kLowBits) - low),
        above(first.above),
        through(last.above + last.equal),
        count(through.count - above.count) {}
  __device__ bool has(uint32_t key) const { return key - low < width; }
  __device__ uint32_t last() const { return low + width - 1; }  // the largest key of it
};

__device__ inline bool reaches(const Amount& above, const Amount& through, Mass goal, Measure by) {
  return by == Measure::mass ? above.mass < goal && through.mass >= goal
                             : above.count < goal && through.count >= goal;
}

// Sums over the threads of a block.
template <class Team>
struct Running {
  Amount of_warp[Team::kWarps];

  // Over the threads before this one, and over all. A barrier for the block.
  __device__ Amount before(const Amount& own, Amount& all) {
    constexpr unsigned warp = 0xffffffffu;
    Amount through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Amount other{__shfl_up_sync(warp, through.mass, step), __shfl_up_sync(warp, through.count, step)};
      if (Team::lane() >= step) through = through + other;
    }
    // As one access of 16 bytes.
    if (Team::lane() == 31)
      *reinterpret_cast<uint4*>(of_warp + Team::warp()) = {
          static_cast<uint32_t>(through.mass), static_cast<uint32_t>(through.mass >> 32), through.count, 0};
    __syncthreads();
    const uint4 words = Team::lane() < Team::kWarps ? reinterpret_cast<const uint4*>(of_warp)[Team::lane()]
                                                    : uint4{};
    const Mass mass = Mass{words.y} << 32 | words.x;
    const bool earlier = Team::lane() < Team::warp();
    all = {warp_sum(mass), __reduce_add_sync(warp, words.z)};
    const Amount warps{warp_sum(earlier ? mass : 0), __reduce_add_sync(warp, earlier ? words.z : 0)};
    return warps + through - own;
  }
};

// Wide: for more than 2^15 weights a block.
template <class Team, bool Wide>
class Selection {
 public:
  static constexpr int kBins = 18 * 64 + 1, kDigits = 512;
  static constexpr int kEach = (kBins + Team::kThreads - 1) / Team::kThreads;
  // From three blocks on each adds up some of the bins for all: reaching into others is slow.
  static constexpr bool kShared = Team::kBlocks > 2, kSent = kShared && !Wide;
  // One place more than bins: for the high part of what is in no bin but the first.
  static constexpr int kSlice = (kBins + Team::kBlocks) / Team::kBlocks;
  static constexpr int kPlaces = kSlice * Team::kBlocks;
  static_assert(kDigits <= Team::kThreads && (!kShared || kSlice <= Team::kThreads) && kPlaces > kBins);
  struct Bins {
    uint32_t ones[kPlaces], lows[kPlaces];   // later digits
    uint32_t carries[Wide ? kPlaces : 1];    // of the last bits
  };
  struct Memory {
    uint2 sent[kSent ? Team::kBlocks : 1][kSent ? kSlice : 1];  // of this block's slice, by each
    Amount totals[kShared ? kPlaces : 1];
    Running<Team> running;
    Found found[4];
    typename Team::Gate met, added;  // all bins are complete, or here; totals are here
  };

  __device__ Selection(Memory& memory, Bins& bins) : m_(memory), b_(bins) {}

  // Before Team::begin(), by one thread.
  __device__ void open() {
    if constexpr (kSent)
      Team::expect_bytes(m_.met, kPlaces * uint32_t{sizeof(uint2)});
    else
      Team::expect_arrivals(m_.met, Team::kBlocks);
    if constexpr (kShared) Team::expect_bytes(m_.added, kPlaces * uint32_t{sizeof(Amount)});
  }
  // A barrier must follow.
  __device__ void clear() { clear_places(kPlaces); }

  __device__ __forceinline__ void put(uint32_t key) { put_at(key >> kLowBits, key & kLow); }

  // Adds up what all have put and, over all threads, `tail`, which is in bin 0.
  __device__ void add_up(Mass tail, uint32_t tails) {
    tail = warp_sum(tail);
    tails = __reduce_add_sync(0xffffffffu, tails);
    if (Team::lane() == 0 && tails > 0) put_tail(tail, tails);
    __syncthreads();
    if constexpr (kSent) {
      for (int place = static_cast<int>(threadIdx.x); place < kPlaces; place += Team::kThreads)
        Team::send(&m_.sent[Team::rank()][place % kSlice], uint2{b_.ones[place], b_.lows[place]}, m_.met,
                   place / kSlice);
      Team::pass(m_.met);
    } else if constexpr (Team::kBlocks > 1) {
      if (threadIdx.x < Team::kBlocks) Team::arrive_at(m_.met, static_cast<int>(threadIdx.x));
      Team::pass(m_.met);
    }
    if constexpr (kShared) {
      if (const int i = static_cast<int>(threadIdx.x); i < kSlice) {
        const Amount sum = amount_of(Team::rank() * kSlice + i);
#pragma unroll
        for (int rank = 0; rank < Team::kBlocks; rank++)
          Team::send(&m_.totals[Team::rank() * kSlice + i], sum, m_.added, rank);
      }
      Team::pass(m_.added);
    }
    const int first = first_bin();
    Amount sum{0, 0};
#pragma unroll
    for (int j = 0; j < kEach; j++) {
      own_[j] = first - j < 0 ? Amount{0, 0} : kShared ? m_.totals[first - j] : amount_of(first - j);
      if (first == j) own_[j] = own_[j] + (kShared ? m_.totals[kBins] : amount_of(kBins));
      sum = sum + own_[j];
    }
    above_ = m_.running.before(sum, total_);
    through_ = above_ + sum;
    // What was read from the others has gone into the sum: nothing is left to wait for.
    if constexpr (!kShared) Team::arrive_unordered();
  }
  // Until the bins are nobody's any more.
  __device__ void await_others() {
    if constexpr (!kShared) Team::wait();
  }

  __device__ const Amount& total() const { return total_; }

  // The bin of the largest weight that, with all larger ones, reaches `goal`; there is enough.
  __device__ Found bin_at(Mass goal, Measure by) {
    return search(own_, above_, through_, goal, by, first_bin(), Found{0, kLowBits, {}, {}});
  }

  // Of two goals of mass.
  __device__ void bins_at(Mass goal, Mass other_goal, Found& at, Found& other_at) {
    Found& answer = next_answer();
    Found& other_answer = next_answer();
    const Found none{0, kLowBits, {}, {}};
    find(own_, above_, through_, goal, Measure::mass, first_bin(), none, answer);
    find(own_, above_, through_, other_goal, Measure::mass, first_bin(), none, other_answer);
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
      clear_places(kDigits);
      Team::sync();
      each([&](uint32_t key) {
        if (key && key >> found.shift == found.prefix)
          put_at(key >> shift & ((1u << bits) - 1), key & kLow);
      });
      Team::sync();
      const int digit = kDigits - 1 - static_cast<int>(threadIdx.x);
      Amount own[1] = {digit < 0 ? Amount{0, 0} : of_all(bin, digit)}, all;
      const Amount above = found.above + m_.running.before(own[0], all);
      found.prefix <<= bits;
      found.shift = shift;
      found = search(own, above, above + own[0], goal, by, digit, found);
    }
    return found;
  }

 private:
  static __device__ int first_bin() { return kBins - 1 - kEach * static_cast<int>(threadIdx.x); }

  __device__ void clear_places(int count) {
    for (int i = threadIdx.x; i < count; i += Team::kThreads) {
      b_.ones[i] = b_.lows[i] = 0;
      if constexpr (Wide) b_.carries[i] = 0;
    }
  }
  __device__ __forceinline__ void put_at(uint32_t place, uint32_t low, uint32_t ones = 1) {
    atomicAdd(&b_.ones[place], ones);
    if constexpr (Wide) {
      if (atomicAdd(&b_.lows[place], low) > ~low) atomicAdd(&b_.carries[place], 1u);
    } else {
      atomicAdd(&b_.lows[place], low);
    }
  }
  // So that sums of the tails of all warps fit.
  __device__ void put_tail(Mass tail, uint32_t tails) {
    put_at(0, static_cast<uint32_t>(tail) & 0xffffu, tails);
    put_at(kBins, static_cast<uint32_t>(tail >> 16), 0);
    if constexpr (Wide) atomicAdd(&b_.carries[kBins], static_cast<uint32_t>(tail >> 48));
  }

  // Of what all blocks have at `place`, a bin or what is behind the last one; if sent, in this slice.
  __device__ Amount amount_of(int place) const {
    const uint32_t bin = place == kBins ? 0 : static_cast<uint32_t>(place);
    Amount sum;
    if constexpr (kSent) {
      uint32_t count = 0;
      Mass low = 0;
#pragma unroll
      for (int i = 0; i < Team::kBlocks; i++) {
        const uint2 other = m_.sent[i][place % kSlice];
        count += other.x;
        low += other.y;
      }
      sum = of_bin(bin, count, low);
    } else {
      sum = of_all(bin, place);
    }
    if (place == kBins) sum.mass <<= 16;
    return sum;
  }
  // Of the weights that all blocks have put at `place`, those of bin `bin`.
  __device__ Amount of_all(uint32_t bin, int place) const {
    uint32_t count = 0;
    Mass low = 0;
#pragma unroll
    for (int i = 0; i < Team::kBlocks; i++) {
      const int rank = (Team::rank() + i) % Team::kBlocks;
      count += *Team::of(&b_.ones[place], rank);
      low += *Team::of(&b_.lows[place], rank);
      if constexpr (Wide) low += Mass{*Team::of(&b_.carries[place], rank)} << 32;
    }
    return of_bin(bin, count, low);
  }
  static __device__ Amount of_bin(uint32_t bin, uint32_t count, Mass low) {
    const uint32_t octave = bin >> 6;
    return {count * mass_of(bin << kLowBits) + (low << (octave ? octave - 1 : 0)), count};
  }

  // Of one thread: `own` of the places from `first` down, after `above` and up to `end`.
  template <int N>
  __device__ __forceinline__ Found search(const Amount (&own)[N], const Amount& above, const Amount& end,
                                          Mass goal, Measure by, int first, const Found& found) {
    Found& answer = next_answer();
    find(own, above, end, goal, by, first, found, answer);
    __syncthreads();
    return answer;
  }
  template <int N>
  static __device__ __forceinline__ void find(const Amount (&own)[N], Amount above, const Amount& end,
                                              Mass goal, Measure by, int first, const Found& found,
                                              Found& answer) {
    if (!reaches(above, end, goal, by)) return;  // all but one thread
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

  Memory& m_;
  Bins& b_;
  Amount own_[kEach], above_{}, through_{}, total_{};  // of the thread's bins, from the last one down
  uint32_t turn_ = 0;
};

}  // namespace ss::cuda
