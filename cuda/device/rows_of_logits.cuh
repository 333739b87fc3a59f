// What a draw is given, and what it first learns of a row of logits.
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
  bool fits;       // a block's ids, in its shared memory
  uint32_t piece;  // ids of one warp, a multiple of 4
};

__device__ inline float larger(float a, float b) {  // NaN where one is NaN
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}
__device__ inline float largest_of(const float4& x) {
  return larger(larger(x.x, x.y), larger(x.z, x.w));
}
// Two units in the last place: good enough for a sum.
__device__ inline float exp_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}
// By the copy engine's path past the registers, for the thread that reads it after await_copies().
template <int Bytes>
__device__ inline void copy_async(float* to, const float* from) {
  const auto place = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(Bytes)
               : "memory");
}
__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

struct Largest {
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
struct Sums {
  Mass all = 0;   // of exp over the raw logits
  Mass left = 0;  // of the weights that min-p leaves
  Mass tail = 0;  // of those that are in no bin but the first
  uint32_t tails = 0;
  int id = INT_MAX;  // the first that has the largest logit

  __device__ Sums over_warp() const {
    constexpr unsigned warp = 0xffffffffu;
    return {warp_sum(all), warp_sum(left), warp_sum(tail), __reduce_add_sync(warp, tails),
            __reduce_min_sync(warp, id)};
  }
  __device__ Sums operator+(const Sums& other) const {
    return {all + other.all, left + other.left, tail + other.tail, tails + other.tails,
            min(id, other.id)};
  }
};

}  // namespace ss::cuda
