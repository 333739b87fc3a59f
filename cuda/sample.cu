// Draws one token a row: repetition penalty, temperature, top-k, top-p, min-p, in this order, each
// on what the one before has left. Greedy where the temperature is 0. The random number of a row
// comes from its own seed and position alone, so that a row's tokens do not depend on the batch.
//
// A row belongs to a cluster of two to eight blocks (one block on cards without clusters), each
// thread to the same ids in every pass. The logits are read once, into shared memory where they fit; a pass
// finds the largest, one turns them into weights and sums these, and what top-k, top-p and the
// random number choose is found by select.cuh. Nothing sorts the vocabulary.
//
// Answers are those of the CPU kernel, ties by the smaller id included. What may differ is the last
// bit of exp, and that masses are multiples of 2^-45 (the largest weight is 1): another token
// follows only where a random number falls within that distance of a boundary.
#include "device/fault.cuh"
#include "device/philox.cuh"
#include "device/select.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
using Mass = unsigned long long;

struct Rows {
  const float* logits;
  int64_t stride;
  int v;
  const float *temperature, *top_p, *min_p, *penalty;
  const int32_t *top_k, *seed;
  int64_t seed_stride;
  const int32_t *stop, *quiet;  // null: no ids to hold back
  int stops;
  int32_t* seen;  // one bit a token id that the row has seen, or null
  int64_t seen_stride;
  int32_t *position, *token;
  float* logprob;
  Fault* fault;
  float unit;  // masses are weights times this power of two; sums of v fit 63 bits
  bool fits;   // a block's ids, in its shared memory
  int piece;   // ids of one warp
};

// Bits whose order is that of the floats, -0 as 0.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float unordered(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

struct Largest {
  uint32_t raw;   // ordered bits of the largest raw logit; infinite where one is NaN
  uint32_t best;  // of the largest one that penalty and held-back ids leave
  int32_t id;     // the first that has it

  __device__ Largest operator+(const Largest& other) const {
    const bool theirs = other.best > best || (other.best == best && other.id < id);
    return {max(raw, other.raw), theirs ? other.best : best, theirs ? other.id : id};
  }
};
struct Sums {
  Mass all;           // of exp over the raw logits
  Mass total, left;   // of all weights; of those that min-p leaves
  uint32_t positive;  // weights that have a mass

  __device__ Sums operator+(const Sums& other) const {
    return {all + other.all, total + other.total, left + other.left, positive + other.positive};
  }
};

template <int Blocks>
class Row {
  using Own = Team<Blocks>;
  using Select = Selection<Blocks>;

 public:
  struct Memory {
    typename Select::Memory select;
    // Each is written once: a block may still read what came before.
    Largest warp_largest[kWarps], largest[Blocks];
    Sums warp_sums[kWarps], sums[Blocks];
    Mass warp_mass[kWarps], masses[Blocks];
  };

  __device__ Row(const Rows& rows, Memory& memory, float* kept)
      : rows_(rows),
        m_(memory),
        kept_(rows.fits ? kept : nullptr),
        b_(Own::row()),
        raw_(rows.logits + b_ * rows.stride),
        at_(rows.position[b_]),
        seed_low_(rows.seed[b_ * rows.seed_stride]),
        seed_high_(rows.seed[b_ * rows.seed_stride + 1]),
        top_k_(rows.top_k[b_]),
        temperature_(rows.temperature[b_]),
        top_p_(rows.top_p[b_]),
        min_p_(rows.min_p[b_]),
        penalty_(rows.penalty[b_]),
        marks_(rows.seen ? rows.seen + b_ * rows.seen_stride : nullptr),
        stops_(rows.quiet && at_ < rows.quiet[b_] ? rows.stops : 0),
        as_read_((penalty_ == 1 || !marks_) && stops_ == 0),
        first_(Own::rank() * kWarps * rows.piece),
        begin_(min(static_cast<int64_t>(rows.v), int64_t{first_} + threadIdx.x / 32 * rows.piece)),
        end_(min(static_cast<int64_t>(rows.v), int64_t{begin_} + rows.piece)) {}

  __device__ void draw() {
    Own::begin();
    const Largest largest = find_largest();
    const int best_id = largest.id == INT32_MAX ? rows_.v - 1 : largest.id;
    const float raw = unordered(largest.raw);
    best_ = unordered(largest.best);
    scale_ = temperature_ > 0 ? 1 / temperature_ : 1;
    if (!isfinite(raw) || !isfinite(best_)) {
      if (Own::rank() > 0 || threadIdx.x > 0) return;
      rows_.fault->report(b_, 0, 0);
      return write(best_id);
    }
    const Sums sums = weigh(raw);
    largest_ = raw;
    all_ = sums.all;
    if (!(temperature_ > 0)) {
      if (Own::rank() == 0 && threadIdx.x == 0) write(best_id);
      return;
    }
    const double random = uniform(seed_low_, seed_high_, static_cast<uint32_t>(at_));
    if (top_k_ > 0 || top_p_ < 1)
      draw_filtered(sums, random);
    else
      write_nth(point(random, sums.left), [&](float w) { return w < min_p_ ? 0 : mass(w); });
  }

 private:
  __device__ __noinline__ float changed(int i, float x) const {
    if (penalty_ != 1 && marks_ && (static_cast<uint32_t>(marks_[i >> 5]) >> (i & 31) & 1u))
      x = x > 0 ? x / penalty_ : x * penalty_;
    for (int j = 0; j < stops_; j++)
      if (rows_.stop[j] == i) x = -INFINITY;
    return x;
  }
  __device__ float processed(int i, float x) const { return as_read_ ? x : changed(i, x); }
  __device__ float weight(int i) const {
    if (kept_) return kept_[i - first_];
    return expf((processed(i, raw_[i]) - best_) * scale_);
  }
  __device__ Mass mass(float weight) const { return static_cast<Mass>(weight * rows_.unit); }
  // A random one of `total` units, counted from 1.
  __device__ static Mass point(double random, Mass total) {
    return min(static_cast<Mass>(random * static_cast<double>(total)) + 1, total);
  }

  // NaN is no candidate, but makes the largest raw logit infinite.
  __device__ Largest find_largest() {
    Largest own{0, ordered(-INFINITY), INT32_MAX};
#pragma unroll 4
    for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
      const float raw = raw_[i], x = processed(i, raw);
      if (kept_) kept_[i - first_] = x;
      own.raw = max(own.raw, ordered(raw == raw ? raw : INFINITY));
      if (x == x) own = own + Largest{0, ordered(x), i};
    }
    Own::await_all();
    return Own::sum(own, m_.warp_largest, m_.largest);
  }

  __device__ Sums weigh(float largest) {
    Sums own{0, 0, 0, 0};
    const bool draws = temperature_ > 0;
#pragma unroll 2
    for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
      const float x = kept_ ? kept_[i - first_] : processed(i, raw_[i]);
      own.all += mass(expf((as_read_ ? x : raw_[i]) - largest));
      if (!draws) continue;
      const float w = expf((x - best_) * scale_);
      const Mass m = mass(w);
      if (kept_) kept_[i - first_] = w;
      own.total += m;
      own.left += w < min_p_ ? 0 : m;
      own.positive += m > 0;
    }
    return Own::sum(own, m_.warp_sums, m_.sums);
  }

  // A weight's bits, from those of the smallest one that has a mass.
  __device__ uint32_t key(float weight) const {
    return __float_as_uint(weight) - __float_as_uint(1 / rows_.unit);
  }

  // Each filter leaves the first few of all weights, taken by falling size and then by id: `total`
  // is the mass of the fewest.
  __device__ void draw_filtered(const Sums& sums, double random) {
    Select select(m_.select);
    const auto each = [&](auto visit) {
#pragma unroll 1
      for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
        const float w = weight(i);
        if (const Mass m = mass(w)) visit(key(w), m);
      }
    };
    Mass total = sums.total, goal = 0;
    Found found{};
    enum { top_k, top_p, chosen };
#pragma unroll 1  // as in select.cuh
    for (int stage = top_k; stage <= chosen; stage++) {
      if (stage == top_k) {
        if (top_k_ <= 0 || static_cast<uint32_t>(top_k_) >= sums.positive) continue;
        goal = static_cast<Mass>(top_k_);
      } else if (stage == top_p) {
        if (!(top_p_ < 1)) continue;
        goal = static_cast<Mass>(ceil(static_cast<double>(top_p_) * static_cast<double>(total)));
        goal = max(Mass{1}, min(goal, total));
      } else {
        total = min(total, max(sums.left, mass(1)));
        goal = point(random, total);
      }
      found = select.at(goal, stage == top_k ? Measure::count : Measure::mass, each);
      const Mass one = found.equal.mass / found.equal.count;
      const Mass ties = stage == top_k ? goal - found.above.count
                                       : (goal - found.above.mass + one - 1) / one;
      if (stage == chosen)
        goal = ties;  // which of those that are equal, from 1
      else
        total = found.above.mass + ties * one;
    }
    const auto is_it = [&](float w) { return mass(w) && key(w) >> found.shift == found.prefix; };
    if (found.equal.count > 1)
      return write_nth(goal, [&](float w) { return Mass{is_it(w)}; });
#pragma unroll 1
    for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32)
      if (is_it(weight(i))) write(i);
  }

  // Writes the first id with amount(0) + .. + amount(id) >= goal, or 0 where there is none.
  template <class AmountOf>
  __device__ void write_nth(Mass goal, AmountOf amount) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Mass own = 0;
#pragma unroll 2
    for (int i = begin_ + lane; i < end_; i += 32) own += amount(weight(i));
    const Mass total = Own::sum(own, m_.warp_mass, m_.masses);
    if (goal == 0 || total < goal) {
      if (Own::rank() == 0 && threadIdx.x == 0) write(0);
      return;
    }
#pragma unroll 1
    for (int r = 0; r < Own::rank(); r++) goal -= min(goal, m_.masses[r]);
#pragma unroll 1
    for (int w = 0; w < warp; w++) goal -= min(goal, m_.warp_mass[w]);
    if (goal == 0 || goal > m_.warp_mass[warp]) return;
#pragma unroll 1
    for (int i = begin_ + lane;; i += 32) {
      const Mass one = i < end_ ? amount(weight(i)) : 0;
      Mass through = one;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const Mass before = __shfl_up_sync(0xffffffffu, through, step);
        if (lane >= step) through += before;
      }
      const unsigned past = __ballot_sync(0xffffffffu, through >= goal);
      if (past) {
        if (lane == __ffs(past) - 1) write(i);
        return;
      }
      goal -= __shfl_sync(0xffffffffu, through, 31);
    }
  }

  // One thread of all.
  __device__ __noinline__ void write(int chosen) const {
    const double all = largest_ + log(static_cast<double>(all_) / rows_.unit);
    rows_.logprob[b_] = static_cast<float>(raw_[chosen] - all);
    rows_.token[b_] = chosen;
    rows_.position[b_] = at_ + 1;
    if (marks_) marks_[chosen >> 5] |= static_cast<int32_t>(1u << (chosen & 31));
  }

  const Rows& rows_;
  Memory& m_;
  float* const kept_;  // this block's ids from first_ on: logits, then weights; or null
  const int64_t b_;
  const float* const raw_;
  // All of the row's arguments are read at once.
  const int32_t at_;
  const uint32_t seed_low_, seed_high_;
  const int32_t top_k_;
  const float temperature_, top_p_, min_p_, penalty_;
  int32_t* const marks_;
  const int stops_;
  const bool as_read_;  // penalty and held-back ids change nothing
  const int first_, begin_, end_;
  float best_ = 0, scale_ = 1, largest_ = NAN;
  Mass all_ = 0;
};

template <int Blocks>
__global__ void __launch_bounds__(kThreads) draw_rows(const __grid_constant__ Rows rows) {
  extern __shared__ __align__(16) char memory[];
  using Memory = typename Row<Blocks>::Memory;
  Row<Blocks>(rows, *reinterpret_cast<Memory*>(memory),
              reinterpret_cast<float*>(memory + sizeof(Memory)))
      .draw();
}

template <int Blocks>
void start(Stream& s, int64_t b, Rows rows) {
  constexpr int kStatic = 1024;  // what the driver keeps of a block's shared memory
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int64_t warps = Blocks * kWarps, own = sizeof(typename Row<Blocks>::Memory);
  const int64_t piece = (rows.v + warps * 32 - 1) / (warps * 32) * 32;
  const int64_t kept = piece * kWarps * int64_t{sizeof(float)};
  rows.piece = static_cast<int>(piece);
  rows.fits = own + kept + kStatic <= most;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {Blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(b * Blocks);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(rows.fits ? own + kept : own);
  config.stream = s.handle;
  config.attrs = &cluster;
  config.numAttrs = Blocks > 1 ? 1 : 0;
  cudaFuncSetAttribute(draw_rows<Blocks>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(config.dynamicSmemBytes));
  cudaLaunchKernelEx(&config, draw_rows<Blocks>, rows);
}

}  // namespace

void sample(Stream& s, In logits, In temperature, In top_k, In top_p, In min_p, In penalty, In seed,
            Opt stop, Opt quiet, OptInOut seen, InOut position, InOut token, InOut logprob) {
  const int64_t b = logits.size(0), v = logits.size(1);  // ids are i32, and so is v
  if (b == 0 || v == 0) return;
  const bool holds = stop && quiet;
  int digits = 0;  // of v
  while (v >> digits) digits++;
  const Rows rows{logits.data<float>(),
                  logits.stride(),
                  static_cast<int>(v),
                  temperature.data<float>(),
                  top_p.data<float>(),
                  min_p.data<float>(),
                  penalty.data<float>(),
                  top_k.data<int32_t>(),
                  seed.data<int32_t>(),
                  seed.stride(),
                  holds ? stop.data<int32_t>() : nullptr,
                  holds ? quiet.data<int32_t>() : nullptr,
                  holds ? static_cast<int>(stop.size(0)) : 0,
                  seen ? seen.data<int32_t>() : nullptr,
                  seen ? seen.stride() : 0,
                  position.data<int32_t>(),
                  token.data<int32_t>(),
                  logprob.data<float>(),
                  s.fault("the logits of row %lld are not finite"),
                  static_cast<float>(int64_t{1} << (63 - digits < 45 ? 63 - digits : 45)),
                  false,
                  0};
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (major < 9)
    start<1>(s, b, rows);
  else if (b <= 16)  // blocks for each of 132 multiprocessors, once
    start<8>(s, b, rows);
  else if (b <= 32)
    start<4>(s, b, rows);
  else
    start<2>(s, b, rows);
}
KERNEL(sample)

}  // namespace ss::cuda
