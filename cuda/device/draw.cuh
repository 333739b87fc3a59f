// Draws a token of one row, by a team of blocks; see sample.cu. Every thread has the same ids in
// every pass. The logits are read once, into shared memory where they fit: one pass finds the
// largest, one turns them into keys (select.cuh) and puts these into a histogram. That tells within a
// 64th of an octave where top-k, top-p and the random number will fall; a third pass gathers what
// lies there, a few hundred of 50,280, and one block does the rest. Where those are too many (equal
// logits), all blocks go on together.
#pragma once
#include "philox.cuh"
#include "rows_of_logits.cuh"

namespace ss::cuda {

template <int Blocks, int Warps, bool Wide>
class Row {
  using Own = Team<Blocks, Warps>;
  using Select = Selection<Own, Wide>;

 public:
  struct Memory {
    typename Select::Memory select;
    Largest largest_of_warp[Warps], largest[Blocks];
    Sums sums_of_warp[Warps], sums[Blocks];
    typename Own::template Parts<Mass> masses;
  };

  __device__ Row(const Rows& rows, Memory& memory, float* kept)
      : rows_(rows),
        m_(memory),
        kept_(kept),
        fits_(rows.fits),
        b_(Own::row()),
        raw_(rows.logits + b_ * rows.stride),
        first_(Own::rank() * Warps * rows.piece),
        begin_(first_ + threadIdx.x / 32 * rows.piece),
        end_(min(rows.v, begin_ + rows.piece)) {
    if (fits_) fetch();  // on its way while the row's arguments are read, all at once
    at_ = rows.position[b_];
    const auto* seed = reinterpret_cast<const uint32_t*>(rows.seed + b_ * rows.seed_stride);
    seed_[0] = seed[0], seed_[1] = seed[1];
    top_k_ = rows.top_k[b_];
    temperature_ = rows.temperature[b_];
    top_p_ = rows.top_p[b_];
    min_p_ = rows.min_p[b_];
    const int32_t quiet = rows.quiet ? rows.quiet[b_] : INT_MIN;
    stops_ = at_ < quiet ? rows.stops : 0;
    as_read_ = (!rows.seen || rows.penalty[b_] == 1) && stops_ == 0;
  }

  // Before the kernel waits for those ahead of it.
  static __device__ void begin(Memory& memory) {
    Own::arrive();
    Select(memory.select).clear();
  }
  __device__ void draw() {
    Select select(m_.select);
    const bool draws = temperature_ > 0, filters = draws && (top_k_ > 0 || top_p_ < 1);
    const Largest largest = find_largest();
    best_ = largest.best;
    scale_ = draws ? 1 / temperature_ : 1;
    if (!isfinite(largest.raw) || !isfinite(best_)) {
      if (Own::rank() > 0 || threadIdx.x > 0) return;
      rows_.fault->report(b_, 0, 0);
      return write(0, largest.raw, 0);
    }
    const Sums sums = weigh(largest.raw, filters, select);
    all_ = sums.all;
    largest_ = largest.raw;
    if (!draws) {
      if (Own::rank() == 0 && threadIdx.x == 0) write(sums.id, largest_, all_);
      return;
    }
    const double random = uniform(seed_[0], seed_[1], static_cast<uint32_t>(at_));
    if (filters) return draw_filtered(select, sums, random);
    const uint32_t least = key_of(min_p_, rows_.least);
    write_nth(point(random, sums.left), [&](uint32_t key) { return key < least ? 0 : mass_of(key); });
  }

 private:
  // Functions that stand apart are static, so that the row stays in registers.
  __device__ static __noinline__ float changed(const Rows& rows, int64_t b, int stops, uint32_t i,
                                               float x) {
    const float penalty = rows.penalty[b];
    if (penalty != 1 && rows.seen) {
      const uint32_t marks = rows.seen[b * rows.seen_stride + (i >> 5)];
      if (marks >> (i & 31) & 1u) x = x > 0 ? x / penalty : x * penalty;
    }
    for (int j = 0; j < stops; j++)
      if (static_cast<uint32_t>(rows.stop[j]) == i) x = -INFINITY;
    return x;
  }

  // Ids own() to own() + 3 of every 128 of the warp's; impossible ones stand behind the last id.
  __device__ uint32_t own() const { return begin_ + threadIdx.x % 32 * 4; }
  __device__ float4& kept(uint32_t i) const {
    return *reinterpret_cast<float4*>(kept_ + (i - first_));
  }
  __device__ void fetch() const {
    for (uint32_t i = own(); i < end_; i += 128) {
      float* to = kept_ + (i - first_);
      if (rows_.wide && i + 4 <= end_) {
        copy_async<16>(to, raw_ + i);
        continue;
      }
#pragma unroll 1
      for (uint32_t j = 0; j < 4; j++)
        if (i + j < end_)
          copy_async<4>(to + j, raw_ + i + j);
        else
          to[j] = -INFINITY;
    }
  }
  __device__ float4 raw_four(uint32_t i) const {
    if (rows_.wide && i + 4 <= end_) return *reinterpret_cast<const float4*>(raw_ + i);
    const auto one = [&](uint32_t j) { return j < end_ ? raw_[j] : -INFINITY; };
    return {one(i), one(i + 1), one(i + 2), one(i + 3)};
  }
  __device__ float4 processed_four(uint32_t i, float4 x) const {
    if (as_read_) return x;
    const auto one = [&](uint32_t j, float x) { 
      return j < end_ ? changed(rows_, b_, stops_, j, x) : x;
    };
    return {one(i, x.x), one(i + 1, x.y), one(i + 2, x.z), one(i + 3, x.w)};
  }
  __device__ uint32_t key(float x) const { return key_of(expf((x - best_) * scale_), rows_.least); }
  __device__ uint4 keys_of(float4 x) const { return {key(x.x), key(x.y), key(x.z), key(x.w)}; }
  __device__ uint4 keys_four(uint32_t i) const {
    if (fits_) return reinterpret_cast<const uint4&>(kept(i));
    return keys_of(processed_four(i, raw_four(i)));
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
  __device__ static Mass point(double random, Mass total) {
    return min(static_cast<Mass>(random * static_cast<double>(total)) + 1, total);
  }
  __device__ Mass goal_of_top_p(Mass total) const {
    const double part = static_cast<double>(top_p_) * static_cast<double>(total);
    return max(Mass{1}, min(static_cast<Mass>(ceil(part)), total));
  }

  __device__ Largest find_largest() {
    Largest largest{-INFINITY, -INFINITY};
    if (fits_) await_copies();
#pragma unroll 4
    for (uint32_t i = own(); i < end_; i += 128) {
      const float4 raw = fits_ ? kept(i) : raw_four(i);
      largest.raw = larger(largest.raw, largest_of(raw));
      if (as_read_) continue;
      const float4 x = processed_four(i, raw);
      largest.best = larger(largest.best, largest_of(x));
      if (fits_) kept(i) = x;
    }
    if (as_read_) largest.best = largest.raw;
    Own::wait();
    return Own::sum_blocks(largest, m_.largest_of_warp, m_.largest);
  }

  // visit(i, x) for ids i to i + 3, whose logits are x after penalty and held-back ids. Returns the
  // sum of exp over the raw ones: whole numbers of four at a time, so that it is the same however the
  // row is cut.
  template <class Visit>
  __device__ __forceinline__ Mass sum_exp(float largest, Visit visit) const {
    Mass all = 0;
#pragma unroll 1
    for (uint32_t i = own(); i < end_; i += 128) {
      const float4 raw = fits_ && as_read_ ? kept(i) : raw_four(i);
      const float4 x = fits_ ? kept(i) : processed_four(i, raw);
      const float four = (exp_fast(raw.x - largest) + exp_fast(raw.y - largest)) +
                         (exp_fast(raw.z - largest) + exp_fast(raw.w - largest));
      all += static_cast<Mass>(four * rows_.unit);
      visit(i, x);
    }
    return all;
  }

  // The logits in shared memory become keys.
  __device__ Sums weigh(float largest, bool filters, Select& select) {
    Sums sums;
    const uint32_t least = key_of(min_p_, rows_.least);
    // The largest weight is 1, so that top-p never needs one that v times would be less than it
    // leaves; top-k may need any.
    const float never = top_k_ > 0 ? 0.0f : 0.99f * (1 - top_p_) / static_cast<float>(rows_.v);
    const uint32_t cut = max(1u << kLowBits, min(kLinear, key_of(min(1.0f, never), rows_.least)));
    const auto put = [&](uint32_t key) {
      if (key >= cut) return select.put(key);
      sums.tail += key;
      sums.tails += key > 0;
    };
    const auto keys = [&](uint32_t i, float4 x) {
      const uint4 key = keys_of(x);
      if (fits_) reinterpret_cast<uint4&>(kept(i)) = key;
      return key;
    };
    const auto add = [&](uint32_t key) {
      sums.left += key < least ? 0 : mass_of(key);
      if (filters) put(key);
    };
    if (!(temperature_ > 0)) {
      sums.all = sum_exp(largest, [&](uint32_t i, float4 x) {
        const uint32_t place = x.x == best_ ? 0 : x.y == best_ ? 1 : x.z == best_ ? 2 : 3;
        if (largest_of(x) == best_) sums.id = min(sums.id, static_cast<int>(i + place));
      });
    } else if (filters && !(min_p_ > 0)) {
      sums.all = sum_exp(largest, [&](uint32_t i, float4 x) {
        const uint4 key = keys(i, x);
        put(key.x);
        put(key.y);
        put(key.z);
        put(key.w);
      });
    } else {
      sums.all = sum_exp(largest, [&](uint32_t i, float4 x) {
        const uint4 key = keys(i, x);
        add(key.x);
        add(key.y);
        add(key.z);
        add(key.w);
      });
    }
    return Own::sum_blocks(sums, m_.sums_of_warp, m_.sums);
  }

  // Each filter leaves the first few of all weights, taken by falling size and then by id: `total`
  // is the mass of the fewest. First within bounds, by whole bins.
  __device__ void draw_filtered(Select& select, const Sums& sums, double random) {
    enum { chosen, top_p, top_k };  // each lies below the one before, or overlaps it
    select.add_up({sums.tail, sums.tails});
    const Amount all = select.total();
    const Mass left = max(min_p_ > 0 ? sums.left : all.mass, Mass{1});
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
      low = goal_of_top_p(low);
      Found first, last;
      select.bins_at(low, goal, first, last);
      spans[top_p] = Span(last, first);
      high = min(high, goal + mass_of((first.prefix + 1) << kLowBits));
    }
    Found first, last;
    select.bins_at(point(random, min(low, left)), point(random, min(high, left)), first, last);
    spans[chosen] = Span(last, first);

    select.await_others();
    Mass total = all.mass;
    if (spans[top_k].count + spans[top_p].count + spans[chosen].count <= Select::kRoom) {
      const uint32_t lows[3] = {spans[0].low, spans[1].low, spans[2].low};
      const uint32_t widths[3] = {spans[0].width, spans[1].width, spans[2].width};
      each_own([&](uint32_t key, uint32_t i) {
        const bool in = key - lows[0] < widths[0] || key - lows[1] < widths[1] ||
                        key - lows[2] < widths[2];
        if (in && key) select.list(key, i);
      });
      Own::sync();
      if (Own::rank() > 0) return;
      select.sort(spans);
      Amount through{};
      if (limits) {
        select.id_at(top_k, spans[top_k], top_k_, Measure::count, through);
        total = through.mass;
      }
      if (top_p_ < 1) {
        select.id_at(top_p, spans[top_p], goal_of_top_p(total), Measure::mass, through);
        total = through.mass;
      }
      const Mass goal = point(random, min(total, left));
      const uint32_t id = select.id_at(chosen, spans[chosen], goal, Measure::mass, through);
      if (threadIdx.x == 0) write(static_cast<int>(id), largest_, all_);
      return;
    }
    const auto each = [&](auto visit) { each_own([&](uint32_t key, uint32_t) { visit(key); }); };
    Mass goal = 0;
    Found found{};
#pragma unroll 1  // as in select.cuh
    for (int stage = limits ? top_k : top_p; stage >= chosen; stage--) {
      if (stage == top_p && !(top_p_ < 1)) continue;
      goal = stage == top_k   ? top_k_
             : stage == top_p ? goal_of_top_p(total)
                              : point(random, min(total, left));
      found = select.at(goal, stage == top_k ? Measure::count : Measure::mass, each);
      const Mass one = found.equal.mass / found.equal.count;
      goal = stage == top_k ? goal - found.above.count : (goal - found.above.mass + one - 1) / one;
      total = found.above.mass + goal * one;
    }
    // The goal is now which of those that are equal, from 1.
    write_nth(goal, [&](uint32_t key) { return Mass{key && key >> found.shift == found.prefix}; });
  }

  // Writes the first id with amount(0) + .. + amount(id) >= goal, or 0 where there is none.
  template <class AmountOf>
  __device__ void write_nth(Mass goal, AmountOf amount) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Mass own_sum = 0;
    each_own([&](uint32_t key, uint32_t) { own_sum += amount(key); });
    const Mass total = Own::sum(own_sum, m_.masses);
    if (total < goal && Own::rank() == 0 && threadIdx.x == 0) write(0, largest_, all_);
    if (goal == 0 || total < goal) return;
    const int this_warp = Own::rank() * Warps + warp;
#pragma unroll 1
    for (int w = 0; w < this_warp; w++) goal -= min(goal, m_.masses[w]);
    if (goal == 0 || goal > m_.masses[this_warp]) return;
#pragma unroll 1
    for (uint32_t i = own();; i += 128) {
      const uint4 key = i < end_ ? keys_four(i) : uint4{};
      const Mass some[4] = {amount(key.x), amount(key.y), amount(key.z), amount(key.w)};
      const Mass mine = some[0] + some[1] + some[2] + some[3];
      Mass through = mine;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const Mass before = __shfl_up_sync(0xffffffffu, through, step);
        if (lane >= step) through += before;
      }
      const unsigned past = __ballot_sync(0xffffffffu, through >= goal);
      if (past) {
        if (lane != __ffs(past) - 1) return;
        Mass sum = through - mine + some[0];
        int j = 0;
#pragma unroll
        for (int next = 1; next < 4; next++)
          if (sum < goal) {
            sum += some[next];
            j = next;
          }
        return write(static_cast<int>(i) + j, largest_, all_);
      }
      goal -= __shfl_sync(0xffffffffu, through, 31);
    }
  }

  // One thread of all.
  __device__ void write(int id, float largest, Mass all) const { write(rows_, b_, id, largest, all); }
  __device__ static __noinline__ void write(const Rows& rows, int64_t b, int id, float largest,
                                            Mass all) {
    const float sum = static_cast<float>(all) / rows.unit;
    rows.logprob[b] = rows.logits[b * rows.stride + id] - largest - logf(sum);
    rows.token[b] = id;
    rows.position[b]++;
    if (rows.seen)
      rows.seen[b * rows.seen_stride + (id >> 5)] |= static_cast<int32_t>(1u << (id & 31));
  }

  const Rows& rows_;
  Memory& m_;
  float* const kept_;  // in shared memory, this block's ids from first_ on: logits, then keys
  const bool fits_;    // or not
  const int64_t b_;
  const float* const raw_;
  const uint32_t first_, begin_, end_;
  int32_t at_, top_k_;
  uint32_t seed_[2];
  float temperature_, top_p_, min_p_;
  int stops_;
  bool as_read_;  // penalty and held-back ids change nothing
  float best_ = 0, scale_ = 1, largest_ = NAN;
  Mass all_ = 0;
};

}  // namespace ss::cuda
