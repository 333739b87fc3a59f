// The inner kernel of matmul: a tile of outputs over one block of k, both operands read along k.
//
// Every output has one Vec accumulator that runs over k in steps of kLanes, is folded to one number
// at the end of a block in the order of fold(), and is added to the total of the blocks before it.
// This order does not depend on the tile's size or place, so an output has the same bits whatever
// is computed beside it.
#pragma once
#include "simd.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ss::SS_LEVEL {
namespace {

typedef float Quad __attribute__((vector_size(16)));  // outputs of four neighbouring weight rows

// As many accumulators as the registers hold beside one step of x.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;  // of x
#else
constexpr int kTileRows = 3;
#endif
constexpr int kStrip = 16;        // rows of W that a tile meets in turn: a cache line of y
constexpr int64_t kBlock = 1024;  // of k: six rows of it fill three quarters of a 32 KiB L1

// The halves of v folded onto each other until one Quad is left.
SS_INLINE Quad fold_quads(Vec v) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32)));
  const Half h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#elif defined(__AVX__)
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

// In each group of four lanes: elements i and j of a, then of b.
#if defined(__AVX512F__)
#define SS_PICK(a, b, i, j)                                                                \
  __builtin_shufflevector(a, b, i, j, 16 + i, 16 + j, 4 + i, 4 + j, 20 + i, 20 + j, 8 + i, \
                          8 + j, 24 + i, 24 + j, 12 + i, 12 + j, 28 + i, 28 + j)
#elif defined(__AVX__)
#define SS_PICK(a, b, i, j) \
  __builtin_shufflevector(a, b, i, j, 8 + i, 8 + j, 4 + i, 4 + j, 12 + i, 12 + j)
#else
#define SS_PICK(a, b, i, j) __builtin_shufflevector(a, b, i, j, 4 + i, 4 + j)
#endif
// {a0 + a2, a1 + a3, b0 + b2, b1 + b3} and {a0 + a1, a2 + a3, b0 + b1, b2 + b3}
SS_INLINE Vec fold_far(Vec a, Vec b) { return SS_PICK(a, b, 0, 1) + SS_PICK(a, b, 2, 3); }
SS_INLINE Vec fold_near(Vec a, Vec b) { return SS_PICK(a, b, 0, 2) + SS_PICK(a, b, 1, 3); }
#undef SS_PICK

// {sum of a[0], .., sum of a[3]}
SS_INLINE Quad fold(const Vec* a) {
  return fold_quads(fold_near(fold_far(a[0], a[1]), fold_far(a[2], a[3])));
}

// load() of weights. From plain vector code GCC 12 makes four instructions of the bf16 one and
// eleven of the f16 one: at one row of x, from the cache, 27 and 43 GB/s became 54 and 54.
SS_INLINE Vec load_weights(const float* p) { return load(p); }
#if defined(__AVX512F__)
SS_INLINE Vec load_weights(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return bits<Vec>(bits<VecU>(_mm512_maskz_cvtepu16_epi32(0xffff, h)) << 16);
}
SS_INLINE Vec load_weights(const f16* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#elif defined(__F16C__)
SS_INLINE Vec load_weights(const bf16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return bits<Vec>(bits<VecU>(_mm256_cvtepu16_epi32(h)) << 16);
}
SS_INLINE Vec load_weights(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#else
SS_INLINE Vec load_weights(const bf16* p) { return load(p); }
SS_INLINE Vec load_weights(const f16* p) { return load(p); }
#endif

// sums[i][c] += x[i] . w[c] over k columns, for M rows of x (a Vec of each in turn, filled up with
// zeros after k) and columns [k0, k0 + k) of 4 Q rows of w. sums has rows of kStrip floats.
// Meanwhile fetches what lies `ahead` elements on: hardware stops at the end of a page.
template <int M, int Q, class W>
SS_INLINE void add_tile(const float* x, const W* const* w, int64_t k0, int64_t k, int64_t ahead,
                        float* sums) {
  const W* row[4 * Q];
  for (int r = 0; r < 4 * Q; r++) row[r] = w[r] + k0;
  Vec acc[M][4 * Q] = {};
  const auto step = [&](int64_t at, auto&& weights) {
    Vec v[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) v[i] = load(x + at * M + i * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < 4 * Q; r++) {
      const Vec u = weights(r);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) acc[i][r] += v[i] * u;
    }
  };
  const int64_t whole = k / kLanes * kLanes;
  for (int64_t at = 0; at < whole; at += kLanes)
    step(at, [&](int r) {
      __builtin_prefetch(row[r] + at + ahead, 0, 1);
      return load_weights(row[r] + at);
    });
  if (whole < k) {
    Vec rest[4 * Q];
#pragma GCC unroll 1
    for (int r = 0; r < 4 * Q; r++) rest[r] = load_part(row[r] + whole, k - whole);
    step(whole, [&](int r) { return rest[r]; });
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) {
      Quad total;
      float* at = sums + i * kStrip + 4 * q;
      memcpy(&total, at, sizeof(total));
      total += fold(&acc[i][4 * q]);
      memcpy(at, &total, sizeof(total));
    }
}

template <int V>
struct Int {
  static constexpr int value = V;
};

// Calls f(Int<rows>{}) for 1 <= rows <= V.
template <int V = kTileRows, class F>
SS_INLINE void with_rows(int64_t rows, F&& f) {
  if constexpr (V > 1) {
    if (rows < V) return with_rows<V - 1>(rows, f);
  }
  f(Int<V>{});
}

}  // namespace
}  // namespace ss::SS_LEVEL
