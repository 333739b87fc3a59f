// y = x W^T + bias in f32. Rows of W are read where they lie, a few at a time, and widened in
// registers; a block of rows of x, copied as f32, stays in the second-level cache and meets them
// tile by tile (matmul_tile.h). One row of x runs at the speed of memory, many near that of the
// multipliers, through the same code: docs/decisions/0002-matmul.md.
#include "matmul_tile.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // of x, half of a 1 MiB second-level cache
constexpr int64_t kGrain = 65536;           // weights worth waking another thread for

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

// Rows of x as f32, interleaved: a Vec of each in turn, the last one filled with zeros.
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

// y[row, column...] = sums + bias, n of them.
SS_INLINE void write(Out y, int64_t row, int64_t column, const float* sums, const float* bias, int64_t n) {
  with_float(y.dtype(), [&](auto t) {
    auto* to = y.row<decltype(t)>(row) + column;
    for (int64_t c = 0; c < n; c++) from_float(to[c], bias ? sums[c] + bias[column + c] : sums[c]);
  });
}

// Q: quads of weight rows that are read together, more of them where x has too few rows to fill the
// accumulators.
template <class W, int Q>
void multiply(Stream& s, In x, In weight, const float* bias, Out y) {
  constexpr int64_t kColumns = 4 * kQuads, kHeight = kTileRows / Q;
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const int64_t width = ceil_div(k, kLanes) * kLanes, groups = ceil_div(n, kColumns);
  const int64_t fits = kBlockBytes / 4 / max(width, 1) / kHeight * kHeight;
  const int64_t rows = min(m, max(fits, 4 * kHeight)), blocks = ceil_div(m, rows);
  s.parallel(blocks * groups, ceil_div(kGrain, kColumns * max(k, 1)), [&](int64_t at, int64_t end, int worker) {
    float* packed = static_cast<float*>(s.scratch(worker, rows * width * sizeof(float)));
    while (at < end) {
      const int64_t block = at / groups, first = block * rows, count = min(rows, m - first);
      for_tiles(count, kHeight, [&](int64_t i, int64_t height) {
        pack(x, first + i, height, packed + i * width);
      });
      for (const int64_t stop = min(end, (block + 1) * groups); at < stop; at++) {
        const int64_t column = (at - block * groups) * kColumns, columns = min(kColumns, n - column);
        for_tiles(count, kHeight, [&](int64_t i, int64_t height) {
          with_rows<kHeight>(height, [&](auto value) {
            constexpr int M = value.value;
            Quad total[M * kQuads] = {};
            for (int64_t k0 = 0; k0 < k; k0 += kBlock)
              for (int64_t c = 0; c < columns; c += 4 * Q) {
                Rows<W, 4 * Q> w;
                w.ahead = 8 * weight.stride();
                for (int r = 0; r < 4 * Q; r++) w.row[r] = weight.row<W>(min(column + c + r, n - 1)) + k0;
                add_tile<M, Q>(packed + i * width + k0 * M, w, min(kBlock, k - k0), total + c / 4);
              }
            for (int r = 0; r < M; r++)
              write(y, first + i + r, column, reinterpret_cast<float*>(total + kQuads * r), bias, columns);
          });
        });
      }
    }
  });
}

}  // namespace

void matmul(Stream& s, In x, In weight, Opt bias, Out y) {  // [m, k], [n, k], [n] -> [m, n]
  if (x.size(0) == 0 || weight.size(0) == 0) return;
  const float* b = bias ? bias.data<float>() : nullptr;
  with_float(weight.dtype(), [&](auto t) {
    using W = decltype(t);
    if (x.size(0) <= kTileRows / 2)
      multiply<W, 2>(s, x, weight, b, y);
    else
      multiply<W, 1>(s, x, weight, b, y);
  });
}
KERNEL(matmul)

}  // namespace ss::SS_LEVEL
