// What a draw is given, and the logits of a row: read, processed, their largest, and the sum of exp.
#pragma once
#include <limits.h>

#include "fault.cuh"
#include "select.cuh"

namespace ss::cuda {

struct Rows {
  const float* logits;
  int64_t stride;
  uint32_t v;
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
  float unit;      // masses are weights times this power of two; sums of v fit 63 bits
  float least;     // see key_of
  bool wide;       // rows can be read 16 bytes at a time
  uint32_t piece;  // ids of one warp, a multiple of 4
};

__device__ inline float larger(float a, float b) {  // NaN where one is NaN
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}
__device__ inline float largest_of(const float4& x) {
  return larger(larger(x.x, x.y), larger(x.z, x.w));
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Within 2^-18 where the result is worth adding: good enough for a sum.
__device__ inline float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }
// Of what is 0 or less, to two units in the last place; 0 for a NaN.
__device__ inline float weight_of(float x) {
  const float whole = x * 1.44269504f;
  // What rounding took from the exponent: x - ln 2 * whole, by ln 2 in two parts.
  const float rest = fmaf(whole, 1.90465431e-9f, fmaf(whole, -0.693147182f, x)), power = exp2_fast(whole);
  float weight;
  asm("fma.rn.sat.f32 %0, %1, %2, %1;" : "=f"(weight) : "f"(power), "f"(rest));
  return weight;
}
// By the copy engine's path past the registers, for the thread that reads it after await_copies().
template <int Bytes>
__device__ inline void copy_async(float* to, const float* from) {
  const auto place = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(Bytes)
               : "memory");
}
__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

struct alignas(8) Largest {
  float raw = -INFINITY;   // of the logits
  float best = -INFINITY;  // of what penalty and held-back ids leave of them

  // Of what larger() gave: a NaN is a positive one.
  __device__ Largest over_warp() const { return {over_warp(raw), over_warp(best)}; }
  __device__ Largest operator+(const Largest& other) const {
    return {larger(raw, other.raw), larger(best, other.best)};
  }

 private:
  static __device__ float over_warp(float x) {
    const uint32_t bits = __float_as_uint(x);
    const uint32_t most = __reduce_max_sync(0xffffffffu, bits >> 31 ? ~bits : bits | 0x80000000u);
    return __uint_as_float(most >> 31 ? most & 0x7fffffffu : ~most);
  }
};
struct alignas(16) Sums {
  Mass all = 0;   // of exp over the raw logits
  Mass left = 0;  // of the weights that min-p leaves

  __device__ Sums over_warp() const { return {warp_sum(all), warp_sum(left)}; }
  __device__ Sums operator+(const Sums& other) const { return {all + other.all, left + other.left}; }
};

// Every thread has the same ids in every pass: four of each 128 of its warp's. Kept: they are read once, into
// shared memory; where they do not fit there, once a pass.
template <class Team, bool Kept>
class Logits {
 public:
  struct Memory {
    typename Team::template Parts<Largest> largest;
    typename Team::Gate known;
    uint64_t arrived[Team::kWarps];  // of each warp's logits
  };

 protected:
  __device__ Logits(const Rows& rows, Memory& memory, float* kept)
      : rows_(rows),
        b_(Team::row()),
        raw_(rows.logits + b_ * rows.stride),
        first_(static_cast<uint32_t>(Team::rank()) * Team::kWarps * rows.piece),
        begin_(first_ + static_cast<uint32_t>(Team::warp()) * rows.piece),
        end_(min(rows.v, begin_ + rows.piece)),
        of_all_(memory),
        kept_(kept) {
    at_ = rows.position[b_];
    penalty_ = rows.seen ? rows.penalty[b_] : 1;
    quiet_ = rows.quiet ? rows.quiet[b_] : INT_MIN;
  }
  // All arguments have been asked for: they would come behind the logits.
  __device__ void fetch() {
    if constexpr (Kept) copy();
    stops_ = at_ < quiet_ ? rows_.stops : 0;
    as_read_ = penalty_ == 1 && stops_ == 0;
  }
  // Before Team::begin(), by all threads.
  static __device__ void open(Memory& memory) {
    if (threadIdx.x == 0) Team::expect_bytes(memory.known, uint32_t{sizeof(memory.largest)});
    if (Team::kBlocks > 1 && Team::lane() == 0) init_barrier(&memory.arrived[Team::warp()], 1);
  }

  // Ids own() to own() + 3 of every 128 of the warp's; impossible ones stand behind the last id.
  __device__ uint32_t own() const { return begin_ + threadIdx.x % 32 * 4; }
  __device__ float4& kept(uint32_t i) const {
    return *reinterpret_cast<float4*>(kept_ + (i - first_));
  }
  // Teams of several blocks have the copy engine.
  __device__ bool in_bulk() const { return Team::kBlocks > 1 && rows_.wide; }
  __device__ void copy() const {
    if (in_bulk()) {
      if (begin_ >= end_) return;
      const uint32_t whole = (end_ - begin_) & ~3u, lane = threadIdx.x % 32;
      uint64_t* arrived = &of_all_.arrived[Team::warp()];
      if (lane == 0 && whole > 0) {
        arrive_expecting(arrived, whole * uint32_t{sizeof(float)});
        copy_bulk(kept_ + (begin_ - first_), raw_ + begin_, whole * uint32_t{sizeof(float)}, arrived, read_once());
      }
      __syncwarp();
      const uint32_t i = begin_ + whole + lane;
      if (begin_ + whole < end_ && lane < 4) kept_[i - first_] = i < end_ ? raw_[i] : -INFINITY;
      return;
    }
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
  __device__ void await_logits() const {
    if (!in_bulk()) return await_copies();
    if (begin_ + 4 <= end_) wait_barrier(&of_all_.arrived[Team::warp()], 0);
    __syncwarp();
  }
  __device__ float4 raw_four(uint32_t i) const { return Kept ? kept(i) : read_four(i); }
  __device__ float4 read_four(uint32_t i) const {
    if (rows_.wide && i + 4 <= end_) return *reinterpret_cast<const float4*>(raw_ + i);
    const auto one = [&](uint32_t j) { return j < end_ ? raw_[j] : -INFINITY; };
    return {one(i), one(i + 1), one(i + 2), one(i + 3)};
  }
  __device__ float4 processed_four(uint32_t i) const {
    float4 x = raw_four(i);
    if (as_read_) return x;
    uint32_t marks = 0;  // of ids past the last there are none
    if (penalty_ != 1) marks = static_cast<uint32_t>(rows_.seen[b_ * rows_.seen_stride + (i >> 5)]) >> (i & 31) & 15u;
    const auto penalised = [&](int j, float x) {
      return marks >> j & 1u ? x > 0 ? x / penalty_ : x * penalty_ : x;
    };
    if (marks) x = {penalised(0, x.x), penalised(1, x.y), penalised(2, x.z), penalised(3, x.w)};
#pragma unroll 1
    for (int k = 0; k < stops_; k++) {
      const uint32_t at = static_cast<uint32_t>(rows_.stop[k]) - i;
      if (at < 4) x = {at == 0 ? -INFINITY : x.x, at == 1 ? -INFINITY : x.y, at == 2 ? -INFINITY : x.z,
                       at == 3 ? -INFINITY : x.w};
    }
    return x;
  }
  // Sets the largest ones; meanwhile(), while other blocks' are on their way.
  template <class Meanwhile>
  __device__ __forceinline__ void find_largest(Meanwhile meanwhile) {
    Largest largest;
    if constexpr (Kept) await_logits();
#pragma unroll 4
    for (uint32_t i = own(); i < end_; i += 128) largest.raw = larger(largest.raw, largest_of(raw_four(i)));
    largest.best = largest.raw;
    if (!as_read_) {
      largest.best = -INFINITY;
#pragma unroll 1
      for (uint32_t i = own(); i < end_; i += 128) {
        const float4 x = processed_four(i);
        largest.best = larger(largest.best, largest_of(x));
        if constexpr (Kept) kept(i) = x;
      }
    }
    largest = largest.over_warp();
    Team::wait();
    Team::share(largest, of_all_.largest, of_all_.known);
    meanwhile();
    Team::pass(of_all_.known);
    largest = Team::sum(of_all_.largest);
    largest_ = largest.raw;
    best_ = largest.best;
  }

  // exp of four raw logits less the largest, as a whole number: then the sum is the same however the row is cut.
  __device__ Mass exp_of(const float4& x, float largest) const {
    const float four = (exp_fast(x.x - largest) + exp_fast(x.y - largest)) +
                       (exp_fast(x.z - largest) + exp_fast(x.w - largest));
    return static_cast<Mass>(four * rows_.unit);
  }
  // visit(i, x) for ids i to i + 3, whose logits are x after penalty and held-back ids. Returns the
  // sum of exp over the raw ones.
  template <class Visit>
  __device__ __forceinline__ Mass sum_exp(Visit visit) const {
    Mass all = 0;
#pragma unroll 1
    for (uint32_t i = own(); i < end_; i += 128) {
      const float4 x = Kept ? kept(i) : processed_four(i);
      all += exp_of(x, best_);
      visit(i, x);
    }
    if (as_read_) return all;
    all = 0;
#pragma unroll 1
    for (uint32_t i = own(); i < end_; i += 128) all += exp_of(read_four(i), largest_);
    return all;
  }

  const Rows& rows_;
  const int64_t b_;
  const float* const raw_;
  const uint32_t first_, begin_, end_;  // the block's first id; the warp's
  int32_t at_;
  float largest_ = NAN, best_ = NAN;  // of the raw logits, of those that may be drawn
  bool as_read_;                      // penalty and held-back ids change nothing

 private:
  Memory& of_all_;
  float* const kept_;  // from first_ on: logits, then keys
  float penalty_;
  int32_t quiet_;
  int stops_;
};

}  // namespace ss::cuda
