// y = x W^T + bias in f32: rows of x against rows of W, both contiguous along k (see matmul_tile.h).
//
// Few rows of x (decoding): W is read once from where it lies, at the speed of memory, and widened
// in registers. Many rows: a block of W that fits the second-level cache is copied (and widened)
// once, then met by tiles of x that fit the first level.
#include "matmul_tile.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kFewRows = 12;
constexpr int64_t kRows = 256, kColumns = 128;  // a task: 512 KiB of W, 128 KiB of sums

SS_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
SS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SS_INLINE int64_t whole_steps(int64_t k) { return ceil_div(k, kLanes) * kLanes; }

// Rows [first, first + count) of m, columns [k0, k0 + k), as f32: a Vec of each row in turn, rows
// after the last one repeated, the last Vec filled with zeros.
void interleave(In m, int64_t first, int64_t count, int64_t k0, int64_t k, float* to) {
  with_float(m.dtype(), [&](auto t) {
    for (int64_t r = 0; r < count; r++) {
      const auto* from = m.row<decltype(t)>(min(first + r, m.size(0) - 1)) + k0;
      float* at = to + r * kLanes;
      int64_t j = 0;
      for (; j + kLanes <= k; j += kLanes, at += count * kLanes) store(at, load_weights(from + j));
      if (j < k) store(at, load_part(from + j, k - j));
    }
  });
}

// y[row, column...] = sums + bias, n of them.
void write(Out y, int64_t row, int64_t column, const float* sums, const float* bias, int64_t n) {
  with_float(y.dtype(), [&](auto t) {
    auto* to = y.row<decltype(t)>(row) + column;
    for (int64_t c = 0; c < n; c++) from_float(to[c], bias ? sums[c] + bias[column + c] : sums[c]);
  });
}

// Cuts rows into tiles of nearly equal height, so that none is left with a single row.
template <class F>
SS_INLINE void for_tiles(int64_t rows, F&& f) {
  const int64_t tiles = ceil_div(rows, kTileRows);
  for (int64_t t = 0; t < tiles; t++) f(rows * t / tiles, rows * (t + 1) / tiles);
}

template <class W>
void few_rows(Stream& s, In x, In weight, const float* bias, Out y) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0), steps = whole_steps(k);
  float* packed = static_cast<float*>(s.scratch(0, m * steps * sizeof(float)));
  for_tiles(m, [&](int64_t i, int64_t end) { interleave(x, i, end - i, 0, k, packed + i * steps); });
  constexpr int kGroup = 8;
  const int64_t grain = ceil_div(32768, (k + 1) * kGroup) * kGroup;
  s.parallel(n, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t j0 = begin; j0 < end; j0 += kGroup)
    for_tiles(m, [&](int64_t i, int64_t last) {
      with_rows(last - i, [&](auto rows) {
        constexpr int M = rows.value, Q = M * 8 > kTileRows * 4 ? 1 : 2;
        for (int64_t j = j0; j < min(end, j0 + kGroup); j += 4 * Q) {
          Quad total[M][Q] = {};
          for (int64_t k0 = 0; k0 < k; k0 += kBlock) {
            Rows<W, 4 * Q> w;
            for (int r = 0; r < 4 * Q; r++) w.row[r] = weight.row<W>(min(j + r, end - 1)) + k0;
            add_tile<M, Q>(packed + i * steps + k0 * M, w, min(kBlock, k - k0), total);
          }
          for (int r = 0; r < M; r++)
            write(y, i + r, j, reinterpret_cast<float*>(total[r]), bias, min(4 * Q, end - j));
        }
      });
    });
  });
}

void many_rows(Stream& s, In x, In weight, const float* bias, Out y) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const int64_t deep = whole_steps(min(k, kBlock));
  const int64_t columns = min(kColumns, ceil_div(n, 4) * 4);
  const int64_t across = ceil_div(n, columns), down = ceil_div(m, kRows);
  s.parallel(across * down, 1, [&](int64_t begin, int64_t end, int worker) {
    float* w = static_cast<float*>(s.scratch(
        worker, (columns * deep + kTileRows * deep + min(m, kRows) * columns) * sizeof(float)));
    float* tile = w + columns * deep;
    float* sums = tile + kTileRows * deep;
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = m * (task % down) / down, rows = m * (task % down + 1) / down - row;
      const int64_t column = task / down * columns, width = min(columns, n - column);
      memset(sums, 0, rows * columns * sizeof(float));
      for (int64_t k0 = 0; k0 < k; k0 += kBlock) {
        const int64_t depth = min(kBlock, k - k0), steps = whole_steps(depth);
        for (int64_t c = 0; c < width; c += 4)
          interleave(weight, column + c, 4, k0, depth, w + c * steps);
        for_tiles(rows, [&](int64_t i, int64_t last) {
          interleave(x, row + i, last - i, k0, depth, tile);
          with_rows(last - i, [&](auto count) {
            constexpr int M = count.value;
            for (int64_t c = 0; c < width; c += 4) {
              Quad total[M][1];
              for (int r = 0; r < M; r++) memcpy(total[r], sums + (i + r) * columns + c, sizeof(Quad));
              add_tile<M, 1>(tile, Panel{w + c * steps}, steps, total);
              for (int r = 0; r < M; r++) memcpy(sums + (i + r) * columns + c, total[r], sizeof(Quad));
            }
          });
        });
      }
      for (int64_t i = 0; i < rows; i++) write(y, row + i, column, sums + i * columns, bias, width);
    }
  });
}

}  // namespace

void matmul(Stream& s, In x, In weight, Opt bias, Out y) {  // [m, k], [n, k], [n] -> [m, n]
  if (x.size(0) == 0 || weight.size(0) == 0) return;
  const float* b = bias ? bias.data<float>() : nullptr;
  if (x.size(0) > kFewRows) return many_rows(s, x, weight, b, y);
  with_float(weight.dtype(), [&](auto t) { few_rows<decltype(t)>(s, x, weight, b, y); });
}
KERNEL(matmul)

}  // namespace ss::SS_LEVEL
