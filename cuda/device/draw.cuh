// Draws a token of one row, by a team of blocks; see sample.cu. Every thread has the same ids in
// every pass. The logits are read once, into shared memory where they fit: one pass finds the
// largest, one turns them into keys (select.cuh) and puts these into a histogram. That tells within a
// 64th of an octave where top-k, top-p and the random number will fall; a third pass lists what
// lies there, a few hundred of 50,280, and one block does the rest (shortlist.cuh). Where those are too
// many (equal logits), all blocks go on together.
#pragma once
#include <type_traits>

#include "philox.cuh"
#include "rows_of_logits.cuh"
#include "shortlist.cuh"

namespace ss::cuda {

// Large: a block's logits do not fit into its shared memory, or sums of its weights need more than 32 bits.
template <int Blocks, int Warps, bool Large>
class Row : Logits<Team<Blocks, Warps>, !Large> {
  using Own = Team<Blocks, Warps>;
  using Base = Logits<Own, !Large>;
  using Select = Selection<Own, Large>;
  using List = Shortlist<Own>;
  using Base::as_read_, Base::at_, Base::b_, Base::begin_, Base::best_, Base::end_, Base::first_, Base::kept,
      Base::largest_, Base::own, Base::processed_four, Base::raw_, Base::rows_, Base::sum_exp;

 public:
  struct Memory {
    union {  // the list when the bins are done with
      typename Select::Bins bins;
      typename List::Room room;
    };
    typename Select::Memory select;
    typename List::Memory list;
    typename Base::Memory logits;
    typename Own::template Parts<Sums> sums, equals;
    typename Own::Gate sums_known, equals_known;
  };

  __device__ Row(const Rows& rows, Memory& memory, float* kept) : Base(rows, memory.logits, kept), m_(memory) {
    const auto* seed = reinterpret_cast<const uint32_t*>(rows.seed + b_ * rows.seed_stride);
    seed_[0] = seed[0], seed_[1] = seed[1];
    top_k_ = rows.top_k[b_];
    temperature_ = rows.temperature[b_];
    top_p_ = rows.top_p[b_];
    min_p_ = rows.min_p[b_];
    Base::fetch();
  }

  // Before the kernel waits for those ahead of it.
  static __device__ void begin(Memory& memory) {
    Select select(memory.select, memory.bins);
    if (threadIdx.x == 0) {
      Own::expect_bytes(memory.sums_known, uint32_t{sizeof(memory.sums)});
      Own::expect_bytes(memory.equals_known, uint32_t{sizeof(memory.equals)});
      select.open();
      List(memory.list, memory.room).open();
    }
    Base::open(memory.logits);
    Own::begin();
    select.clear();
  }
  __device__ void draw() {
    Select select(m_.select, m_.bins);
    const bool draws = temperature_ > 0, filters = draws && (top_k_ > 0 || top_p_ < 1);
    Base::find_largest([&] {
      random_ = uniform_bits(seed_[0], seed_[1], static_cast<uint32_t>(at_));
      scale_ = draws ? 1 / temperature_ : 1;
      part_ = static_cast<Mass>(static_cast<double>(top_p_) * 0x1p64);
    });
    if (!isfinite(largest_) || !isfinite(best_)) {
      if (Own::rank() > 0 || threadIdx.x > 0) return;
      rows_.fault->report(b_, 0, 0);
      return write(0, raw_[0], 0);
    }
    if (!draws) return write_best();
    if (filters) return draw_filtered(select);
    const uint32_t least = key_of(min_p_, rows_.least);
    const auto amount = [&](uint32_t key) { return key < least ? 0 : mass_of(key); };
    Mass left = 0;
    const Mass all = weigh([&](uint32_t key) { left += amount(key); });
    Own::share(Sums{all, left}.over_warp(), m_.sums, m_.sums_known);
    Own::pass(m_.sums_known);
    const Sums sums = Own::sum(m_.sums);
    write_nth(point(sums.left), sums.all, [&](int part) { return m_.sums[part].left; }, amount);
  }

 private:
  __device__ uint32_t key(float x) const { return key_of(weight_of((x - best_) * scale_), rows_.least); }
  __device__ uint4 keys_four(uint32_t i) const {
    if constexpr (!Large) return reinterpret_cast<const uint4&>(kept(i));
    const float4 x = processed_four(i);
    return {key(x.x), key(x.y), key(x.z), key(x.w)};
  }
  template <class Visit>
  __device__ __forceinline__ void each_own(Visit visit) const {
#pragma unroll 1
    for (uint32_t i = own(); i < end_; i += 128) {
      const uint4 key = keys_four(i);
      visit(key.x, i);
      visit(key.y, i + 1);
      visit(key.z, i + 2);
      visit(key.w, i + 3);
    }
  }

  // A random one of `total` units, counted from 1.
  __device__ Mass point(Mass total) const { return min(__umul64hi(random_, total) + 1, total); }
  __device__ Mass goal_of_top_p(Mass total) const {
    return max(Mass{1}, min(__umul64hi(part_, total) + (part_ * total != 0), total));
  }

  // The logits in shared memory become keys; visit(key) for each.
  template <class Visit>
  __device__ __forceinline__ Mass weigh(Visit visit) const {
    return sum_exp([&](uint32_t i, const float4& x) {
      const uint4 keys{key(x.x), key(x.y), key(x.z), key(x.w)};
      if constexpr (!Large) reinterpret_cast<uint4&>(kept(i)) = keys;
      visit(keys.x);
      visit(keys.y);
      visit(keys.z);
      visit(keys.w);
    });
  }

  // The first id that has the largest logit.
  __device__ void write_best() {
    auto id = static_cast<unsigned>(INT_MAX);
    const Mass all = sum_exp([&](uint32_t i, const float4& x) {
      const uint32_t place = x.x == best_ ? 0 : x.y == best_ ? 1 : x.z == best_ ? 2 : 3;
      if (largest_of(x) == best_) id = min(id, i + place);
    });
    // Ids are not added up.
    Own::share(Sums{warp_sum(all), __reduce_min_sync(0xffffffffu, id)}, m_.sums, m_.sums_known, 1);
    if (Own::rank() > 0) return;
    Own::pass(m_.sums_known);
    if (Own::warp() > 0) return;
    const Mass total = Own::sum(m_.sums).all;
    id = INT_MAX;
    for (int i = Own::lane(); i < Own::kAllWarps; i += 32) id = min(id, static_cast<unsigned>(m_.sums[i].left));
    id = __reduce_min_sync(0xffffffffu, id);
    if (Own::lane() == 0) write(static_cast<int>(id), raw_[id], total);
  }

  // Each filter leaves the first few of all weights, taken by falling size and then by id: `total`
  // is the mass of the fewest. First within bounds, by whole bins.
  __device__ void draw_filtered(Select& select) {
    enum { chosen, top_p, top_k };  // each lies below the one before, or overlaps it
    // The largest weight is 1, so that top-p never needs one that v times would be less than it
    // leaves; top-k may need any.
    const float never = top_k_ > 0 ? 0.0f : 0.99f * (1 - top_p_) / static_cast<float>(rows_.v);
    const uint32_t cut = max(1u << kLowBits, min(kLinear, key_of(min(1.0f, never), rows_.least)));
    const uint32_t least = key_of(min_p_, rows_.least);
    Sums own;
    std::conditional_t<Large, Mass, uint32_t> tail = 0;
    uint32_t tails = 0;
    const auto add = [&](uint32_t key) {
      if (key >= cut) return select.put(key);
      tail += key;
      tails += key > 0;
    };
    if (min_p_ > 0)
      own.all = weigh([&](uint32_t key) {
        add(key);
        own.left += key < least ? 0 : mass_of(key);
      });
    else
      own.all = weigh(add);
    Own::share(own.over_warp(), m_.sums, m_.sums_known, min_p_ > 0 ? Blocks : 1);
    select.add_up(tail, tails);

    const Amount all = select.total();
    Mass left = all.mass;
    if (min_p_ > 0) {
      Own::pass(m_.sums_known);
      left = max(Own::sum(m_.sums).left, Mass{1});
    }
    const bool limits = top_k_ > 0 && static_cast<uint32_t>(top_k_) < all.count;
    Mass low = all.mass, high = all.mass;
    Span spans[3];
    if (limits) {
      const Found at = select.bin_at(top_k_, Measure::count);
      const Mass some = top_k_ - at.above.count;
      spans[top_k] = Span(at, at);
      low = at.above.mass + some * mass_of(at.prefix << kLowBits);
      high = at.above.mass + min(at.equal.mass, some * mass_of((at.prefix + 1) << kLowBits));
    }
    if (top_p_ < 1) {
      const Mass goal = goal_of_top_p(high);
      Found first, last;
      if (limits) {
        low = goal_of_top_p(low);
        select.bins_at(low, goal, first, last);
      } else {
        low = goal;
        first = last = select.bin_at(goal, Measure::mass);
      }
      spans[top_p] = Span(last, first);
      high = min(high, goal + mass_of((first.prefix + 1) << kLowBits));
    }
    Found first, last;
    select.bins_at(point(min(low, left)), point(min(high, left)), first, last);
    spans[chosen] = Span(last, first);

    select.await_others();
    if (Own::rank() == 0) Own::pass(m_.sums_known);
    Mass total = all.mass;
    if (spans[top_k].count + spans[top_p].count + spans[chosen].count <= List::kRoom) {
      List list(m_.list, m_.room);
      if (Own::rank() == 0) list.clear();
      if (limits)
        fill<3>(list, spans);
      else
        fill<2>(list, spans);  // chosen and top-p
      if (Own::rank() > 0) return;
      const float log_sum = log_of(Own::sum(m_.sums).all);
      list.take(spans, [&](uint32_t id) { return raw_[id]; });
      list.add_up(spans, m_.select.running);
      if (limits) total = list.through(top_k, top_k_, Measure::count).mass;
      if (top_p_ < 1) total = list.through(top_p, goal_of_top_p(total), Measure::mass).mass;
      list.find(chosen, point(min(total, left)), Measure::mass, [&](int j, const Amount&) {
        write_out(static_cast<int>(list.id(j)), list.logit(j) - largest_ - log_sum);
      });
      return;
    }
    const auto each = [&](auto visit) { each_own([&](uint32_t key, uint32_t) { visit(key); }); };
    Mass goal = 0;
    Found found{};
#pragma unroll 1  // as in select.cuh
    for (int stage = limits ? top_k : top_p; stage >= chosen; stage--) {
      if (stage == top_p && !(top_p_ < 1)) continue;
      goal = stage == top_k ? top_k_ : stage == top_p ? goal_of_top_p(total) : point(min(total, left));
      found = select.at(goal, stage == top_k ? Measure::count : Measure::mass, each);
      const Mass one = found.equal.mass / found.equal.count;
      goal = stage == top_k ? goal - found.above.count : (goal - found.above.mass + one - 1) / one;
      total = found.above.mass + goal * one;
    }
    // The goal is now which of those that are equal, from 1.
    const auto amount = [&](uint32_t key) { return Mass{key && key >> found.shift == found.prefix}; };
    Sums equal{own.all, 0};
    each_own([&](uint32_t key, uint32_t) { equal.left += amount(key); });
    Own::share(equal.over_warp(), m_.equals, m_.equals_known);
    Own::pass(m_.equals_known);
    write_nth(goal, Own::sum(m_.equals).all, [&](int part) { return m_.equals[part].left; }, amount);
  }

  // What the spans have goes to the first block.
  template <int Spans>
  __device__ __forceinline__ void fill(List& list, const Span (&spans)[3]) const {
    uint32_t lows[Spans], widths[Spans];
#pragma unroll
    for (int s = 0; s < Spans; s++) lows[s] = spans[s].low, widths[s] = spans[s].width;
    const auto in = [&](uint32_t key) {
      bool found = false;
#pragma unroll
      for (int s = 0; s < Spans; s++) found |= key - lows[s] < widths[s];
      return found;
    };
    constexpr uint32_t rounds = 32;
#pragma unroll 1
    for (uint32_t first = own(); first < end_; first += rounds * 128) {
      uint32_t some = 0;  // rounds in which this thread has found some
#pragma unroll 2
      for (uint32_t round = 0; round < rounds && first + round * 128 < end_; round++) {
        const uint4 key = keys_four(first + round * 128);
        if (in(key.x) | in(key.y) | in(key.z) | in(key.w)) some |= 1u << round;
      }
#pragma unroll 1
      for (; some; some &= some - 1) {
        const uint32_t i = first + (static_cast<uint32_t>(__ffs(static_cast<int>(some))) - 1) * 128;
        const uint4 key = keys_four(i);
        const uint32_t x = in(key.x), y = in(key.y), z = in(key.z), w = in(key.w);
        uint32_t place = list.reserve(x + y + z + w);
        if (x) list.list(place++, key.x, i);
        if (y) list.list(place++, key.y, i + 1);
        if (z) list.list(place++, key.z, i + 2);
        if (w) list.list(place, key.w, i + 3);
      }
    }
    list.give();
  }

  // Writes the first id with amount(0) + .. + amount(id) >= goal, or 0 where there is none. part(i) is the
  // sum over the ids of the i-th warp.
  template <class PartOf, class AmountOf>
  __device__ void write_nth(Mass goal, Mass all, PartOf part, AmountOf amount) const {
    constexpr int parts = Own::kAllWarps, each = (parts + 31) / 32;
    const int lane = Own::lane(), this_warp = Own::rank() * Warps + Own::warp();
    const auto own_part = [&](int j) { return lane * each + j < parts ? part(lane * each + j) : Mass{0}; };
    Mass mine = 0;
#pragma unroll
    for (int j = 0; j < each; j++) mine += own_part(j);
    const Mass through = sum_through(mine), total = __shfl_sync(0xffffffffu, through, 31);
    if (goal == 0 || total < goal) {
      if (this_warp == 0 && lane == 0) write(0, raw_[0], all);
      return;
    }
    const int of = __ffs(__ballot_sync(0xffffffffu, through >= goal)) - 1;
    goal -= __shfl_sync(0xffffffffu, through - mine, of);
    int warp = of * each;
    for (; goal > part(warp); warp++) goal -= part(warp);
    if (warp != this_warp) return;
#pragma unroll 1
    for (uint32_t i = own();; i += 128) {
      const uint4 key = i < end_ ? keys_four(i) : uint4{};
      const Mass some[4] = {amount(key.x), amount(key.y), amount(key.z), amount(key.w)};
      const Mass four = some[0] + some[1] + some[2] + some[3], up_to = sum_through(four);
      const unsigned past = __ballot_sync(0xffffffffu, up_to >= goal);
      if (past) {
        if (lane != __ffs(past) - 1) return;
        Mass sum = up_to - four + some[0];
        int j = 0;
#pragma unroll
        for (int next = 1; next < 4; next++)
          if (sum < goal) {
            sum += some[next];
            j = next;
          }
        return write(static_cast<int>(i) + j, raw_[i + j], all);
      }
      goal -= __shfl_sync(0xffffffffu, up_to, 31);
    }
  }
  // Over this lane and those before it.
  __device__ static Mass sum_through(Mass x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Mass before = __shfl_up_sync(0xffffffffu, x, step);
      if (Own::lane() >= step) x += before;
    }
    return x;
  }

  __device__ float log_of(Mass all) const { return logf(static_cast<float>(all) / rows_.unit); }
  // One thread of all.
  __device__ void write(int id, float logit, Mass all) const { write_out(id, logit - largest_ - log_of(all)); }
  __device__ void write_out(int id, float logprob) const {
    rows_.logprob[b_] = logprob;
    rows_.token[b_] = id;
    rows_.position[b_] = at_ + 1;
    if (rows_.seen) atomicOr(&rows_.seen[b_ * rows_.seen_stride + (id >> 5)], static_cast<int32_t>(1u << (id & 31)));
  }

  Memory& m_;
  int32_t top_k_;
  uint32_t seed_[2];
  float temperature_, top_p_, min_p_, scale_ = 1;
  Mass random_ = 0, part_ = 0;  // the random number and top-p, which is below 1 where it counts, times 2^64
};

}  // namespace ss::cuda
