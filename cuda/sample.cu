// Draws one token a row: repetition penalty, temperature, top-k, top-p, min-p, in this order, each
// on what the one before has left. Greedy where the temperature is 0. The random number of a row
// comes from its own seed and position alone, so that a row's tokens do not depend on the batch.
//
// A row belongs to a cluster of four or eight blocks (one block on cards without clusters), each
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

constexpr int kThreads = 512, kWarps = kThreads / 32;
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

template <class T>
__device__ T shuffled(T x, int lane) {
  static_assert(sizeof(T) % 4 == 0);
  int words[sizeof(T) / 4];
  memcpy(words, &x, sizeof x);
#pragma unroll
  for (int& word : words) word = __shfl_xor_sync(0xffffffffu, word, lane);
  memcpy(&x, words, sizeof x);
  return x;
}

template <int Blocks>
class Row {
  using Own = Team<Blocks>;
  using Select = Selection<Blocks, kThreads>;

 public:
  struct Memory {
    typename Select::Memory select;
    // What the blocks tell each other, by turns: a block may still read what came last.
    Largest largest[Blocks];
    Sums sums[Blocks];
    Mass masses[Blocks];
    Largest warp_largest[kWarps];
    Sums warp_sums[kWarps];
    Mass warp_mass[kWarps];
  };

  __device__ Row(const Rows& rows, Memory& memory, float* kept)
      : rows_(rows),
        m_(memory),
        kept_(rows.fits ? kept : nullptr),
        b_(Own::row()),
        raw_(rows.logits + b_ * rows.stride),
        at_(rows.position[b_]),
        marks_(rows.seen ? rows.seen + b_ * rows.seen_stride : nullptr),
        penalty_(rows.penalty[b_]),
        stops_(rows.quiet && at_ < rows.quiet[b_] ? rows.stops : 0),
        first_(Own::rank() * kWarps * rows.piece),
        begin_(min(static_cast<int64_t>(rows.v), int64_t{first_} + threadIdx.x / 32 * rows.piece)),
        end_(min(static_cast<int64_t>(rows.v), int64_t{begin_} + rows.piece)) {}

  __device__ void draw() {
    Own::begin();
    const Largest largest = find_largest();
    const int best_id = largest.id == INT32_MAX ? rows_.v - 1 : largest.id;
    const float raw = unordered(largest.raw), t = rows_.temperature[b_];
    best_ = unordered(largest.best);
    scale_ = t > 0 ? 1 / t : 1;
    if (!isfinite(raw) || !isfinite(best_)) {
      if (Own::rank() > 0 || threadIdx.x > 0) return;
      rows_.fault->report(b_, 0, 0);
      return write(best_id, NAN);
    }
    const float least = rows_.min_p[b_];
    const Sums sums = weigh(raw, t > 0, least);
    const double all = raw + log(static_cast<double>(sums.all) / rows_.unit);
    if (!(t > 0)) {
      if (Own::rank() == 0 && threadIdx.x == 0) write(best_id, all);
      return;
    }
    const auto* key = reinterpret_cast<const uint32_t*>(rows_.seed + b_ * rows_.seed_stride);
    const double random = uniform(key[0], key[1], static_cast<uint32_t>(at_));
    if (rows_.top_k[b_] > 0 || rows_.top_p[b_] < 1)
      draw_filtered(sums, random, least, all);
    else
      write_nth([&](float w) { return w < least ? 0 : mass(w); }, point(random, sums.left), all);
  }

 private:
  __device__ float processed(int i, float x) const {
    if (penalty_ != 1 && marks_ && (static_cast<uint32_t>(marks_[i >> 5]) >> (i & 31) & 1u))
      x = x > 0 ? x / penalty_ : x * penalty_;
    for (int j = 0; j < stops_; j++)
      if (rows_.stop[j] == i) x = -INFINITY;
    return x;
  }
  __device__ float weight(int i) const {
    return kept_ ? kept_[i - first_] : expf((processed(i, raw_[i]) - best_) * scale_);
  }
  __device__ Mass mass(float weight) const { return static_cast<Mass>(weight * rows_.unit); }
  // A random one of `total` units, counted from 1.
  __device__ static Mass point(double random, Mass total) {
    return min(static_cast<Mass>(random * static_cast<double>(total)) + 1, total);
  }

  // The sum over all threads of all blocks, in the same order each time.
  template <class T>
  __device__ static T team_sum(T x, T* of_warp, T* of_block) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = x + shuffled(x, step);
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    if (warp == 0) {
      x = of_warp[lane % kWarps];
#pragma unroll
      for (int step = kWarps / 2; step > 0; step /= 2) x = x + shuffled(x, step);
      if (lane < Blocks) *Own::of(of_block + Own::rank(), lane) = x;
    }
    Own::sync();
    x = of_block[lane % Blocks];
#pragma unroll
    for (int step = Blocks / 2; step > 0; step /= 2) x = x + shuffled(x, step);
    return x;
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
    return team_sum(own, m_.warp_largest, m_.largest);
  }

  __device__ Sums weigh(float largest, bool draws, float least) {
    const bool as_read = kept_ && stops_ == 0 && (penalty_ == 1 || !marks_);
    Sums own{0, 0, 0, 0};
#pragma unroll 4
    for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
      const float x = kept_ ? kept_[i - first_] : processed(i, raw_[i]);
      own.all += mass(expf((as_read ? x : raw_[i]) - largest));
      if (!draws) continue;
      const float w = expf((x - best_) * scale_);
      const Mass m = mass(w);
      if (kept_) kept_[i - first_] = w;
      own.total += m;
      own.left += w < least ? 0 : m;
      own.positive += m > 0;
    }
    return team_sum(own, m_.warp_sums, m_.sums);
  }

  // Keys are a weight's bits, from those of the smallest one that has a mass.
  __device__ uint32_t lowest() const { return __float_as_uint(1 / rows_.unit); }
  __device__ uint32_t key(float weight) const { return __float_as_uint(weight) - lowest(); }

  // What the filters leave: all weights above a key, and the first `ties` of those that have it.
  __device__ void draw_filtered(const Sums& sums, double random, float least, double all) {
    const auto each = [&](auto visit) {
      for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
        const float w = weight(i);
        if (const Mass m = mass(w)) visit(key(w), m);
      }
    };
    const int32_t k = rows_.top_k[b_];
    const float p = rows_.top_p[b_];
    Select select(m_.select, each);
    Mass total = sums.total;
    uint32_t from = 0;
    if (k > 0 && static_cast<uint32_t>(k) < sums.positive) {
      const Found cut = select.at(static_cast<Mass>(k), Measure::count, each);
      from = cut.key;
      total = cut.above.mass + (k - cut.above.count) * mass_of(cut);
    }
    if (p < 1) {
      const Mass share = static_cast<Mass>(ceil(static_cast<double>(p) * static_cast<double>(total)));
      const Mass goal = max(Mass{1}, min(share, total));
      const Found cut = select.at(goal, Measure::mass, each);
      const Mass one = mass_of(cut), needed = (goal - cut.above.mass + one - 1) / one;
      from = cut.key;
      total = cut.above.mass + needed * one;
    }
    if (least > 0 && __float_as_uint(least) > lowest() + from) total = max(mass(1), sums.left);

    const Mass at = point(random, total);
    const Found chosen = select.at(at, Measure::mass, each);
    const Mass tie = (at - chosen.above.mass - 1) / mass_of(chosen) + 1;
    if (chosen.equal.count > 1)
      return write_nth([&](float w) { return Mass{mass(w) && key(w) == chosen.key}; }, tie, all);
    for (int i = begin_ + threadIdx.x % 32; i < end_; i += 32) {
      const float w = weight(i);
      if (mass(w) && key(w) == chosen.key) write(i, all);
    }
  }
  __device__ static Mass mass_of(const Found& found) { return found.equal.mass / found.equal.count; }

  // Writes the first id with amount(0) + .. + amount(id) >= goal, or 0 where there is none.
  template <class AmountOf>
  __device__ void write_nth(AmountOf amount, Mass goal, double all) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Mass own = 0;
    for (int i = begin_ + lane; i < end_; i += 32) own += amount(weight(i));
    const Mass total = team_sum(own, m_.warp_mass, m_.masses);
    if (goal == 0 || total < goal) {
      if (Own::rank() == 0 && threadIdx.x == 0) write(0, all);
      return;
    }
    for (int r = 0; r < Own::rank(); r++) goal -= min(goal, m_.masses[r]);
    for (int w = 0; w < warp; w++) goal -= min(goal, m_.warp_mass[w]);
    if (goal == 0 || goal > m_.warp_mass[warp]) return;
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
        if (lane == __ffs(past) - 1) write(i, all);
        return;
      }
      goal -= __shfl_sync(0xffffffffu, through, 31);
    }
  }

  // One thread of all.
  __device__ void write(int chosen, double all) {
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
  const int32_t at_;
  int32_t* const marks_;
  const float penalty_;
  const int stops_, first_, begin_, end_;
  float best_ = 0, scale_ = 1;
};

template <int Blocks>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) draw_rows(const __grid_constant__ Rows rows) {
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
  else if (b <= 32)
    start<8>(s, b, rows);
  else  // one wave up to 64 rows
    start<4>(s, b, rows);
}
KERNEL(sample)

}  // namespace ss::cuda
