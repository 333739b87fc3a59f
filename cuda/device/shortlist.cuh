// The weights among which a draw is decided, up to kRoom of them with their ids, from all blocks to the
// first, which finds those that reach a goal: exactly, the smaller id first where weights are equal.
//
// Weights go into buckets in their order, an equal part of a span each, whose sums are exact; what is in
// the bucket that a goal falls into, one or two weights, is compared with one another.
#pragma once
#include "select.cuh"

namespace ss::cuda {

template <class Team>
class Shortlist {
 public:
  static constexpr int kRoom = 1024, kSpans = 3;
  static constexpr int kBuckets = 128, kAll = kSpans * kBuckets, kMine = kRoom / Team::kThreads;
  static_assert(kAll <= Team::kThreads && kMine * Team::kThreads == kRoom);
  // Two blocks share one: one fills it from its begin, one from its end.
  static constexpr int kRegions = (Team::kBlocks + 1) / 2;
  struct Room {
    uint32_t ones[kAll], lows[kAll], highs[kAll];  // of a bucket; a mass in two parts, whose sums fit
    Mass items[kRegions * kRoom];                  // key, then ~id
  };
  struct Memory {
    Mass counts[Team::kBlocks];  // of items, by each block
    typename Team::Gate given;
    Amount above[kSpans], through[kSpans];
    int winner[kSpans];
    uint32_t picked[kSpans];
    uint32_t listed;  // by this block
  };

  __device__ Shortlist(Memory& memory, Room& room) : m_(memory), r_(room) {}

  // Before Team::begin(), by one thread.
  __device__ void open() {
    Team::expect_arrivals(m_.given, Team::kBlocks);
    m_.listed = 0;
    for (uint32_t& picked : m_.picked) picked = 0;
  }
  // When the room is nobody's.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kAll; i += Team::kThreads) r_.ones[i] = r_.lows[i] = r_.highs[i] = 0;
  }

  // Room for `count` of this thread's, to be filled by list().
  __device__ uint32_t reserve(uint32_t count) { return atomicAdd(&m_.listed, count); }
  __device__ void list(uint32_t place, uint32_t key, uint32_t id) {
    Team::send(&r_.items[slot(Team::rank(), place)], static_cast<Mass>(key) << 32 | ~id, m_.given, 0);
  }
  // By all threads, when all is listed.
  __device__ void give() {
    __syncthreads();
    if (threadIdx.x > 0) return;
    const uint32_t listed = m_.listed;
    Team::send(&m_.counts[Team::rank()], Mass{listed}, m_.given, 0);
    Team::announce(m_.given, 0, (listed + 1) * uint32_t{sizeof(Mass)});
  }

  // In the first block: what is listed goes into buckets. logit(id) is asked for early: what is chosen
  // is one of few.
  template <class Logit>
  __device__ __forceinline__ void take(const Span (&spans)[kSpans], Logit logit) {
    Team::pass(m_.given);
    const float scales[kSpans] = {scale(spans[0]), scale(spans[1]), scale(spans[2])};
#pragma unroll
    for (int j = 0; j < kMine; j++) {
      place_[j] = slot_of(threadIdx.x + j * Team::kThreads);
      bucket_[j] = -1;
      if (place_[j] < 0) continue;
      item_[j] = r_.items[place_[j]];
      const uint32_t key = key_of_item(j);
      logit_[j] = logit(id(j));
      const int s = spans[0].has(key) ? 0 : spans[1].has(key) ? 1 : 2;
      const uint32_t last = s == 0 ? spans[0].last() : s == 1 ? spans[1].last() : spans[2].last();
      const float part = s == 0 ? scales[0] : s == 1 ? scales[1] : scales[2];
      bucket_[j] = s * kBuckets + min(kBuckets - 1, static_cast<int>(static_cast<float>(last - key) * part));
      const Mass mass = mass_of(key);
      atomicAdd(&r_.ones[bucket_[j]], 1u);
      atomicAdd(&r_.lows[bucket_[j]], static_cast<uint32_t>(mass) & kPart);
      atomicAdd(&r_.highs[bucket_[j]], static_cast<uint32_t>(mass >> kPartBits));
    }
    __syncthreads();
  }
  // Then: sums of the buckets.
  __device__ __forceinline__ void add_up(const Span (&spans)[kSpans], Running<Team>& running) {
    const int t = static_cast<int>(threadIdx.x), own_span = t / kBuckets;
    own_ = {0, 0};
    if (t < kAll) own_ = {(Mass{r_.highs[t]} << kPartBits) + r_.lows[t], r_.ones[t]};
    Amount all;
    above_ = running.before(own_, all);
    // What a span has beyond the ones before it, each of which lies above it or overlaps it.
    Amount listed{0, 0}, above = spans[0].above, through = spans[0].through;
    uint32_t low = spans[0].low;
#pragma unroll
    for (int s = 0; s < kSpans; s++) {
      if (s > 0) {
        if (spans[s].width == 0 || spans[s].low >= low) continue;
        listed = listed + (through - above);
        above = spans[s].last() < low ? spans[s].above : through;
        through = spans[s].through;
        low = spans[s].low;
      }
      if (own_span == s) above_ = above_ - listed + above;
    }
  }

  // Calls found(item's number in this thread, all through it) for the weight that, with all larger ones and
  // equal ones of smaller ids, reaches `goal`: in one thread. Barriers for the block.
  template <class Found>
  __device__ __forceinline__ void find(int s, Mass goal, Measure by, Found found) {
    if (own_.count > 0 && reaches(above_, above_ + own_, goal, by)) {
      m_.winner[s] = static_cast<int>(threadIdx.x);
      m_.above[s] = above_;
    }
    __syncthreads();
    const int winner = m_.winner[s];
    auto* picked = reinterpret_cast<uint16_t*>(r_.ones);  // buckets have been read
#pragma unroll
    for (int j = 0; j < kMine; j++)
      if (bucket_[j] == winner) picked[atomicAdd(&m_.picked[s], 1u)] = static_cast<uint16_t>(place_[j]);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMine; j++) {
      if (bucket_[j] != winner) continue;
      Amount above = m_.above[s];
      const int others = static_cast<int>(m_.picked[s]);
#pragma unroll 1
      for (int i = 0; i < others; i++)
        if (const Mass other = r_.items[picked[i]]; other > item_[j])
          above = above + Amount{mass_of(static_cast<uint32_t>(other >> 32)), 1};
      const Amount through = above + Amount{mass_of(key_of_item(j)), 1};
      if (reaches(above, through, goal, by)) found(j, through);
    }
  }
  // All through that weight, for all threads.
  __device__ __forceinline__ Amount through(int s, Mass goal, Measure by) {
    find(s, goal, by, [&](int, const Amount& through) { m_.through[s] = through; });
    __syncthreads();
    return m_.through[s];
  }

  __device__ uint32_t id(int j) const { return ~static_cast<uint32_t>(item_[j]); }
  __device__ float logit(int j) const { return logit_[j]; }

 private:
  static constexpr int kPartBits = 20;  // masses have 41
  static constexpr uint32_t kPart = (1u << kPartBits) - 1;

  __device__ uint32_t key_of_item(int j) const { return static_cast<uint32_t>(item_[j] >> 32); }
  static __device__ float scale(const Span& span) { return __fdividef(kBuckets, static_cast<float>(span.width)); }

  static __device__ int slot(int rank, uint32_t i) {
    return rank / 2 * kRoom + static_cast<int>(rank % 2 ? kRoom - 1 - i : i);
  }
  // Of the item of that number, counted through all blocks; -1 past the last.
  __device__ int slot_of(uint32_t number) const {
    int at = -1;
#pragma unroll
    for (int rank = 0; rank < Team::kBlocks; rank++) {
      const auto count = static_cast<uint32_t>(m_.counts[rank]);
      if (at < 0 && number < count) at = slot(rank, number);
      number -= min(number, count);
    }
    return at;
  }

  Memory& m_;
  Room& r_;
  Mass item_[kMine];
  float logit_[kMine];
  int place_[kMine], bucket_[kMine];
  Amount own_{}, above_{};  // of the thread's bucket
};

}  // namespace ss::cuda
