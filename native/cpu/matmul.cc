// y = x W^T + bias in f32. Rows of W are read where they lie, a few at a time, and widened in
// registers; a block of rows of x, copied as f32, stays in the second-level cache and meets them
// tile by tile (matmul_tile.h). One row of x goes at the speed of memory, many go at that of the
// multipliers, by the same code and with the same bits: docs/decisions/0002-matmul.md.
#include "matmul_strip.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // of x: half of a 1 MiB second-level cache
constexpr int64_t kGrain = 65536;           // weights that are worth another thread

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
        pack(x, height, [&](int64_t r) { return first + i + r; }, packed + i * padded);
      });
      for (const int64_t stop = min(end, (block + 1) * strips); at < stop; at++) {
        const Strip<W> strip(weight.data<W>(), weight.stride(), n,
                             bias ? bias.data<float>() : nullptr, (at - block * strips) * width,
                             width);
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
