// Sums over rows, in one order however many threads there are: rows are cut into pieces of kPieceRows,
// each has sums of its own, and those are added in order.
#pragma once
#include "room.h"
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kPieceRows = 64;

SS_INLINE int64_t row_pieces(int64_t rows) { return (rows + kPieceRows - 1) / kPieceRows; }

// to[j] = the sum of piece[p * width + j] over all pieces.
SS_INLINE void add_pieces(Stream& s, const float* piece, int64_t pieces, int64_t width, int64_t d,
                          float* to) {
  s.parallel(d, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t j = begin; j < end; j++) {
      double total = 0;
      for (int64_t p = 0; p < pieces; p++) total += piece[p * width + j];
      to[j] = static_cast<float>(total);
    }
  });
}

// sums += v, of up to kLanes columns.
SS_INLINE void add_to(float* sums, Vec v, int64_t left) {
  store_some(sums, load_some(sums, left) + v, left);
}

}  // namespace
}  // namespace ss::SS_LEVEL
