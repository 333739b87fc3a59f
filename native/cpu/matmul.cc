// y = x W^T + bias in f32. Rows of W are read where they lie, a few at a time, and widened in
// registers; a block of rows of x, copied as f32, stays in the second-level cache and meets them
// tile by tile (matmul_tile.h). One row of x goes at the speed of memory, many go at that of the
// multipliers, by the same code and with the same bits: docs/decisions/0002-matmul.md.
#include "matmul_tile.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // of x: half of a 1 MiB second-level cache
constexpr int64_t kGrain = 65536;           // weights that are worth another thread

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

// A tile of x as f32: a Vec of each row in turn, the last Vec of a row filled with zeros.
void pack(In x, int64_t first, int64_t rows, float* to) {
  const int64_t k = x.size(1);
  with_float(x.dtype(), [&](auto t) {
    for (int64_t i = 0; i < rows; i++) {
      const auto* from = x.row<decltype(t)>(first + i);
      float* at = to + i * kLanes;
      int64_t j = 0;
      for (; j + kLanes <= k; j += kLanes, at += rows * kLanes) store(at, load(from + j));
      if (j < k) store(at, load_part(from + j, k - j));
    }
  });
}

// A strip of up to kStrip neighbouring rows of W, and the bias of each. Rows after the last one
// repeat it.
template <class W>
struct Strip {
  const W* row[kStrip];
  float bias[kStrip];
  int64_t column, columns;

  SS_INLINE Strip(In weight, Opt b, int64_t column, int64_t width)
      : bias{}, column(column), columns(min(width, weight.size(0) - column)) {
    for (int64_t c = 0; c < width; c++)
      row[c] = weight.row<W>(min(column + c, weight.size(0) - 1));
    if (b) memcpy(bias, b.data<float>() + column, columns * sizeof(float));
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

// Q: quads of weight rows read together; two where x has too few rows to fill the accumulators.
template <class W, int Q>
void multiply(Stream& s, In x, In weight, Opt bias, Out y) {
  constexpr int64_t kHeight = kTileRows / Q;
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const int64_t padded = ceil_div(k, kLanes) * kLanes;
  const int64_t fitting = kBlockBytes / 4 / max(padded, 1) / kHeight * kHeight;
  const int64_t rows = min(m, max(fitting, 4 * kHeight)), blocks = ceil_div(m, rows);
  // Few tiles: the rows of W wait in the first-level cache for the second. Many: x does, and whole
  // cache lines of y are written.
  const int64_t width = m <= 2 * kHeight ? 4 * Q : kStrip, strips = ceil_div(n, width);
  const int64_t ahead = max(8 * weight.stride(), 8192);  // 4 to 12 rows: a tie, 24: worse
  const int64_t grain = ceil_div(kGrain, width * max(k, 1));
  s.parallel(blocks * strips, grain, [&](int64_t at, int64_t end, int worker) {
    float* packed = static_cast<float*>(s.scratch(worker, rows * padded * sizeof(float)));
    while (at < end) {
      const int64_t block = at / strips, first = block * rows, count = min(rows, m - first);
      for_tiles(count, kHeight, [&](int64_t i, int64_t height) {
        pack(x, first + i, height, packed + i * padded);
      });
      for (const int64_t stop = min(end, (block + 1) * strips); at < stop; at++) {
        const Strip<W> strip(weight, bias, (at - block * strips) * width, width);
        for_tiles(count, kHeight, [&](int64_t i, int64_t height) {
          with_rows<kHeight>(height, [&](auto tile) {
            multiply_tile<tile.value, Q>(packed + i * padded, k, strip, ahead, first + i, y);
          });
        });
      }
    }
  });
}

}  // namespace

void matmul(Stream& s, In x, In weight, Opt bias, Out y) {  // [m, k], [n, k], [n] -> [m, n]
  if (x.size(0) == 0 || weight.size(0) == 0) return;
  with_float(weight.dtype(), [&](auto t) {
    using W = decltype(t);
    if (x.size(0) <= kTileRows / 2)
      multiply<W, 2>(s, x, weight, bias, y);
    else
      multiply<W, 1>(s, x, weight, bias, y);
  });
}
KERNEL(matmul)

}  // namespace ss::SS_LEVEL
