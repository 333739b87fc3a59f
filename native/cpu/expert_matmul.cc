// y[p] = x[row of p] weight[expert of p]^T + bias: matmul (matmul.cc), one expert after the other.
// The same tiles, so the same bits; an expert without rows is not read.
#include <math.h>

#include "matmul_strip.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kRows = 96;      // of x that a piece of work packs; a multiple of any tile's height
constexpr int64_t kGrain = 65536;  // weights that are worth another thread

// Places [first, first + count) of one expert.
struct Segment {
  int64_t expert, first, count;
};

// Block `block` of all experts' rows, cut into blocks of kRows.
Segment segment_of(const int32_t* offsets, int64_t block) {
  for (int64_t i = 0;; i++) {
    const int64_t rows = offsets[i + 1] - offsets[i], blocks = ceil_div(rows, kRows);
    if (block < blocks) {
      const int64_t done = block * kRows;
      return {i, offsets[i] + done, min(kRows, rows - done)};
    }
    block -= blocks;
  }
}

// False: s has failed, since what the sort left is not what it leaves.
bool check_order(Stream& s, In order, In offsets) {
  const int64_t places = order.size(0), experts = offsets.size(0) - 1;
  const int32_t *at = order.data<int32_t>(), *first = offsets.data<int32_t>();
  for (int64_t i = 0; i <= experts; i++) {
    if (first[i] >= (i ? first[i - 1] : 0) && first[i] <= places && (i || first[0] == 0)) continue;
    s.fail("offsets[%lld] is %d, expected a rising number up to %lld", static_cast<long long>(i),
           first[i], static_cast<long long>(places));
    return false;
  }
  for (int64_t p = 0; p < first[experts]; p++) {
    if (at[p] >= 0 && at[p] < places) continue;
    s.fail("order[%lld] is %d, expected 0 to %lld", static_cast<long long>(p), at[p],
           static_cast<long long>(places - 1));
    return false;
  }
  return true;
}

template <class W, int Q>
void multiply(const float* packed, int64_t padded, In weight, const float* bias, int64_t column,
              const Segment& at, Out y) {
  constexpr int64_t kHeight = kTileRows / Q;
  const int64_t d = weight.size(2), n = weight.size(1);
  const Strip<W> strip(weight.row<W>(at.expert), d, n, bias, column, kStrip);
  for_tiles(at.count, kHeight, [&](int64_t i, int64_t height) {
    with_rows<kHeight>(height, [&](auto tile) {
      multiply_tile<tile.value, Q>(packed + i * padded, d, strip, max(8 * d, 8192), at.first + i, y);
    });
  });
}

}  // namespace

void expert_matmul(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y) {
  const int64_t n = weight.size(1), d = weight.size(2), experts = weight.size(0);
  const int32_t *at = order.data<int32_t>(), *first = offsets.data<int32_t>();
  if (!check_order(s, order, offsets)) return;
  with_float(y.dtype(), [&](auto yt) {
    using Y = decltype(yt);
    for (int64_t p = first[experts]; p < y.size(0); p++)
      memset(y.row<Y>(p), 0, static_cast<size_t>(n) * sizeof(Y));
  });
  int64_t blocks = 0;
  for (int64_t i = 0; i < experts; i++) blocks += ceil_div(first[i + 1] - first[i], kRows);
  const int64_t strips = ceil_div(n, kStrip), padded = ceil_div(d, kLanes) * kLanes;
  const int64_t grain = ceil_div(kGrain, kStrip * max(d, 1));
  with_float(weight.dtype(), [&](auto wt) {
    using W = decltype(wt);
    s.parallel(blocks * strips, grain, [&](int64_t item, int64_t end, int worker) {
      float* packed = static_cast<float*>(
          s.scratch(worker, static_cast<size_t>(kRows * padded) * sizeof(float)));
      while (item < end) {
        const int64_t block = item / strips;
        const Segment seg = segment_of(first, block);
        const bool few = seg.count <= kTileRows / 2;
        for_tiles(seg.count, few ? kTileRows / 2 : kTileRows, [&](int64_t i, int64_t height) {
          const auto row = [&](int64_t r) {
            const int64_t p = seg.first + i + r;
            return k > 0 ? at[p] / k : p;
          };
          pack(x, height, row, packed + i * padded);
        });
        const float* b = bias ? bias.row<float>(seg.expert) : nullptr;
        for (const int64_t stop = min(end, (block + 1) * strips); item < stop; item++) {
          const int64_t column = (item - block * strips) * kStrip;
          if (few)
            multiply<W, 2>(packed, padded, weight, b, column, seg, y);
          else
            multiply<W, 1>(packed, padded, weight, b, column, seg, y);
        }
      }
    });
  });
}
KERNEL(expert_matmul)

// [a, d], [a], [t, k] -> [t, d]
void expert_combine(Stream& s, In x, In place, In weights, Out y) {
  const int64_t t = weights.size(0), k = weights.size(1), d = x.size(1);
  const int32_t* at = place.data<int32_t>();
  for (int64_t i = 0; i < place.size(0); i++)
    if (at[i] >= x.size(0))
      return s.fail("place[%lld] is %d, expected less than %lld", static_cast<long long>(i), at[i],
                    static_cast<long long>(x.size(0)));
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(t, 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < d; c += kLanes) {
          Vec sum{};
          for (int64_t j = 0; j < k; j++)
            if (const int32_t p = at[i * k + j]; p >= 0)
              sum += weights.row<float>(i)[j] * load_some(x.row<T>(p) + c, d - c);
          store_some(y.row<T>(i) + c, sum, d - c);
        }
    });
  });
}
KERNEL(expert_combine)

}  // namespace ss::SS_LEVEL
