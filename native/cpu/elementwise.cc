// Small ops that only move or touch each element once: memory bound.
#include <math.h>

#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kPiece = 4096;  // elements that a thread takes at a time, at least

int64_t row_length(const View& v) {
  int64_t length = 1;
  for (int i = 1; i < v.rank; i++) length *= v.shape[i];
  return length;
}

// Calls f(row, column, count) until all of y is covered. If all views are dense they are one row.
template <class F, class... P>
SS_INLINE void cover(Stream& s, F&& f, Out y, P... inputs) {
  int64_t rows = y.size(0), length = row_length(*y.view);
  if ((... && (inputs.stride() == length)) && y.stride() == length) {
    length *= rows;
    rows = 1;
  }
  const int64_t pieces = (length + kPiece - 1) / kPiece, grain = kPiece / (length + 1) + 1;
  s.parallel(rows * pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t column = i % pieces * kPiece, left = length - column;
      f(i / pieces, column, left < kPiece ? left : kPiece);
    }
  });
}

// y = f(inputs...), each element through f32.
template <class T, class F, class... P>
SS_INLINE void map(Stream& s, F&& f, Out y, P... inputs) {
  with_float(y.dtype(), [&](auto yt) {
    using Y = decltype(yt);
    cover(
        s,
        [&](int64_t row, int64_t column, int64_t count) {
          Y* to = y.row<Y>(row) + column;
          for (int64_t j = 0; j < count; j += kLanes) {
            const int64_t left = count - j;
            const Vec v = f(load_some(inputs.template row<T>(row) + column + j, left)...);
            store_some(to + j, v, left);
          }
        },
        y, inputs...);
  });
}

// False: s has failed, since a row number is not below `count`, or negative and must not be.
bool check_rows(Stream& s, const char* name, In rows, bool negative, int64_t count) {
  for (int64_t i = 0; i < rows.size(0); i++) {
    const int32_t row = *rows.row<int32_t>(i);
    if (row < count && (negative || row >= 0)) continue;
    s.fail("%s[%lld] is %d, expected %sless than %lld", name, static_cast<long long>(i), row,
           negative ? "" : "at least 0 and ", static_cast<long long>(count));
    return false;
  }
  return true;
}

template <class P>
SS_INLINE char* row_bytes(P p, int64_t row) {
  return static_cast<char*>(p.view->data) + row * p.stride() * size_of(p.dtype());
}
int64_t bytes_in_row(const View& v) { return row_length(v) * size_of(v.dtype); }

}  // namespace

// Also makes a strided x dense.
void cast(Stream& s, In x, Out y) {
  if (x.dtype() == y.dtype())
    return cover(
        s,
        [&](int64_t row, int64_t column, int64_t count) {
          const int64_t size = size_of(x.dtype()), skipped = column * size;
          memcpy(row_bytes(y, row) + skipped, row_bytes(x, row) + skipped, count * size);
        },
        y, x);
  with_float(x.dtype(), [&](auto t) { map<decltype(t)>(s, [](Vec v) { return v; }, y, x); });
}
KERNEL(cast)

void add(Stream& s, In a, In b, Out y) {
  with_float(a.dtype(), [&](auto t) {
    map<decltype(t)>(s, [](Vec p, Vec q) { return p + q; }, y, a, b);
  });
}
KERNEL(add)

void mul(Stream& s, In a, In b, Out y) {
  with_float(a.dtype(), [&](auto t) {
    map<decltype(t)>(s, [](Vec p, Vec q) { return p * q; }, y, a, b);
  });
}
KERNEL(mul)

void fill(Stream& s, InOut x, float value) {
  const Out y{x.view};
  with_float(x.dtype(), [&](auto t) {
    cover(
        s,
        [&](int64_t row, int64_t column, int64_t count) {
          auto* to = y.row<decltype(t)>(row) + column;
          for (int64_t j = 0; j < count; j += kLanes) store_some(to + j, splat(value), count - j);
        },
        y);
  });
}
KERNEL(fill)

void accumulate(Stream& s, In x, InOut sum) {
  const Out y{sum.view};
  with_float(x.dtype(), [&](auto t) {
    with_float(sum.dtype(), [&](auto u) {
      cover(
          s,
          [&](int64_t row, int64_t column, int64_t count) {
            const auto* from = x.row<decltype(t)>(row) + column;
            auto* to = y.row<decltype(u)>(row) + column;
            for (int64_t j = 0; j < count; j += kLanes) {
              const int64_t left = count - j;
              store_some(to + j, load_some(to + j, left) + load_some(from + j, left), left);
            }
          },
          y, x);
    });
  });
}
KERNEL(accumulate)

void scale(Stream& s, InOut x, In factor) {
  const Out y{x.view};
  with_float(x.dtype(), [&](auto t) {
    const Vec by = splat(*factor.data<float>());
    cover(
        s,
        [&](int64_t row, int64_t column, int64_t count) {
          auto* to = y.row<decltype(t)>(row) + column;
          for (int64_t j = 0; j < count; j += kLanes)
            store_some(to + j, load_some(to + j, count - j) * by, count - j);
        },
        y);
  });
}
KERNEL(scale)

// A from A_log, once a model: in double, since everything after depends on it.
void neg_exp(Stream& s, In x, Out y) {
  cover(
      s,
      [&](int64_t row, int64_t column, int64_t count) {
        const float* from = x.row<float>(row) + column;
        float* to = y.row<float>(row) + column;
        for (int64_t j = 0; j < count; j++)
          to[j] = static_cast<float>(-::exp(static_cast<double>(from[j])));
      },
      y, x);
}
KERNEL(neg_exp)

void take_rows(Stream& s, In x, In rows, Out y) {  // T[t, d], i32[m] -> T[m, d]
  if (!check_rows(s, "rows", rows, false, x.size(0))) return;
  const int64_t bytes = bytes_in_row(*y.view);
  s.parallel(y.size(0), kPiece / (bytes + 1) + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      memcpy(row_bytes(y, i), row_bytes(x, *rows.row<int32_t>(i)), bytes);
  });
}
KERNEL(take_rows)

// Negative slots are no rows.
void zero_slots(Stream& s, InOut state, In slots) {  // [p, ...], i32[s]
  if (!check_rows(s, "slots", slots, true, state.size(0))) return;
  s.parallel(slots.size(0), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t slot = *slots.row<int32_t>(i);
      if (slot >= 0) memset(row_bytes(state, slot), 0, bytes_in_row(*state.view));
    }
  });
}
KERNEL(zero_slots)

// to[to_slots[i]] = from[from_slots[i]]; a row that is written must not be read by the same call.
// Copying from a negative slot leaves zeros, to one nothing.
void copy_slots(Stream& s, In from, In from_slots, InOut to, In to_slots) {
  if (!check_rows(s, "from_slots", from_slots, true, from.size(0)) ||
      !check_rows(s, "to_slots", to_slots, true, to.size(0)))
    return;
  const int64_t bytes = bytes_in_row(*to.view);
  s.parallel(to_slots.size(0), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t source = *from_slots.row<int32_t>(i), target = *to_slots.row<int32_t>(i);
      if (target < 0) continue;
      if (source < 0)
        memset(row_bytes(to, target), 0, bytes);
      else
        memmove(row_bytes(to, target), row_bytes(from, source), bytes);
    }
  });
}
KERNEL(copy_slots)

}  // namespace ss::SS_LEVEL
