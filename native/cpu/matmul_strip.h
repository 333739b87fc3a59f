// What matmul and expert_matmul are made of: rows of x copied as f32, and tiles of them multiplied
// with a strip of neighbouring rows of W.
#pragma once
#include "matmul_tile.h"

namespace ss::SS_LEVEL {
namespace {

SS_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
SS_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
SS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cuts rows into tiles of nearly equal height, so that none is left with a single row.
template <class F>
SS_INLINE void for_tiles(int64_t rows, int64_t height, F&& f) {
  const int64_t tiles = ceil_div(rows, height);
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t begin = rows * t / tiles;
    f(begin, rows * (t + 1) / tiles - begin);
  }
}

// A tile of x as f32: a Vec of each row in turn, the last Vec of a row filled with zeros. Row i of
// the tile is row row_of(i) of x.
template <class F>
void pack(In x, int64_t rows, F&& row_of, float* to) {
  const int64_t k = x.size(1);
  with_float(x.dtype(), [&](auto t) {
    for (int64_t i = 0; i < rows; i++) {
      const auto* from = x.row<decltype(t)>(row_of(i));
      float* at = to + i * kLanes;
      int64_t j = 0;
      for (; j + kLanes <= k; j += kLanes, at += rows * kLanes) store(at, load(from + j));
      if (j < k) store(at, load_part(from + j, k - j));
    }
  });
}

// A strip of up to kStrip neighbouring rows of W [n, k], and the bias of each. Rows after the last
// one repeat it.
template <class W>
struct Strip {
  const W* row[kStrip];
  float bias[kStrip];
  int64_t column, columns;

  SS_INLINE Strip(const W* weight, int64_t stride, int64_t n, const float* b, int64_t column,
                  int64_t width)
      : bias{}, column(column), columns(min(width, n - column)) {
    for (int64_t c = 0; c < width; c++) row[c] = weight + min(column + c, n - 1) * stride;
    if (b) memcpy(bias, b + column, columns * sizeof(float));
  }
};

template <class Y>
SS_INLINE void write(const float* sums, const float* bias, int64_t n, Y* y) {
  for (int64_t c = 0; c < n; c++) from_float(y[c], sums[c] + bias[c]);
}

// Rows [first, first + M) of y in the columns of a strip. x: their tile.
template <int M, int Q, class W>
SS_INLINE void multiply_tile(const float* x, int64_t k, const Strip<W>& strip, int64_t ahead,
                             int64_t first, Out y) {
  float sums[M][kStrip] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kBlock)
    for (int64_t c = 0; c < strip.columns; c += 4 * Q)
      add_tile<M, Q>(x + k0 * M, strip.row + c, k0, min(kBlock, k - k0), ahead, &sums[0][c]);
  with_float(y.dtype(), [&](auto t) {
    for (int r = 0; r < M; r++) {
      auto* to = y.row<decltype(t)>(first + r) + strip.column;
      if (strip.columns == kStrip)
        write(sums[r], strip.bias, kStrip, to);
      else
        write(sums[r], strip.bias, strip.columns, to);
    }
  });
}

}  // namespace
}  // namespace ss::SS_LEVEL
