// The gradients of expert_matmul and expert_combine; expert_matmul's by x is expert_matmul itself, of
// turned matrices. Sums over places have their order: a thread has matrices, columns or tokens whole.
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kRows = 8, kVectors = 2;  // of dweight, in registers

SS_INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// False: s has failed, since what the sort left is not what it leaves.
bool check_places(Stream& s, In offsets, int64_t places) {
  const int32_t* first = offsets.data<int32_t>();
  for (int64_t i = 0; i < offsets.size(0); i++) {
    if (first[i] >= (i ? first[i - 1] : 0) && first[i] <= places && (i || first[0] == 0)) continue;
    s.fail("offsets[%lld] is %d, expected a rising number up to %lld", static_cast<long long>(i),
           first[i], static_cast<long long>(places));
    return false;
  }
  return true;
}
bool check_order(Stream& s, In order, int64_t count, int64_t least) {
  const int32_t* at = order.data<int32_t>();
  for (int64_t p = 0; p < count; p++) {
    if (at[p] >= least && at[p] < order.size(0)) continue;
    s.fail("order[%lld] is %d, expected %lld to %lld", static_cast<long long>(p), at[p],
           static_cast<long long>(least), static_cast<long long>(order.size(0) - 1));
    return false;
  }
  return true;
}

}  // namespace

void turn_experts(Stream& s, In weight, Out turned) {  // [e, n, d] -> [e, d, n]
  const int64_t e = weight.size(0), n = weight.size(1), d = weight.size(2);
  constexpr int64_t kSide = 32;
  const int64_t across = up(d, kSide);
  with_float(weight.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(e * across, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; item++) {
        const T* from = weight.row<T>(item / across);
        T* to = turned.row<T>(item / across);
        const int64_t first = item % across * kSide, last = first + kSide < d ? first + kSide : d;
        for (int64_t i = 0; i < n; i += kSide)
          for (int64_t c = first; c < last; c++)
            for (int64_t r = i; r < n && r < i + kSide; r++) to[c * n + r] = from[r * d + c];
      }
    });
  });
}
KERNEL(turn_experts)

void expert_weight_gradient(Stream& s, In dy, In x, In order, In offsets, int64_t k, Out dweight) {
  const int64_t e = dweight.size(0), n = dweight.size(1), d = dweight.size(2), strips = up(n, kRows);
  const int32_t *at = order.data<int32_t>(), *first = offsets.data<int32_t>();
  if (!check_places(s, offsets, dy.size(0)) || (k > 0 && !check_order(s, order, first[e], 0))) return;
  with_float(dy.dtype(), [&](auto yt) {
    with_float(x.dtype(), [&](auto xt) {
      with_float(dweight.dtype(), [&](auto wt) {
        using T = decltype(yt);
        using X = decltype(xt);
        using W = decltype(wt);
        s.parallel(e * strips, 1, [&](int64_t begin, int64_t end, int) {
          for (int64_t item = begin; item < end; item++) {
            const int64_t expert = item / strips, row = item % strips * kRows;
            const int64_t rows = n - row < kRows ? n - row : kRows;
            W* to = dweight.row<W>(expert) + row * d;
            for (int64_t c = 0; c < d; c += kVectors * kLanes) {
              Vec sum[kRows][kVectors] = {};
              for (int64_t p = first[expert]; p < first[expert + 1]; p++) {
                const X* from = x.row<X>(k > 0 ? at[p] / k : p) + c;
                const T* given = dy.row<T>(p) + row;
                Vec v[kVectors] = {};
                for (int64_t i = 0; i < kVectors && c + i * kLanes < d; i++)
                  v[i] = load_some(from + i * kLanes, d - c - i * kLanes);
                for (int64_t r = 0; r < rows; r++)
                  for (int64_t i = 0; i < kVectors; i++) sum[r][i] += to_float(given[r]) * v[i];
              }
              for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < kVectors && c + i * kLanes < d; i++)
                  store_some(to + r * d + c + i * kLanes, sum[r][i], d - c - i * kLanes);
            }
          }
        });
      });
    });
  });
}
KERNEL(expert_weight_gradient)

void expert_column_sums(Stream& s, In dy, In offsets, Out sum) {  // [a, n] -> [e, n]
  const int64_t e = sum.size(0), n = sum.size(1), vectors = up(n, kLanes);
  const int32_t* first = offsets.data<int32_t>();
  if (!check_places(s, offsets, dy.size(0))) return;
  with_float(dy.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(e * vectors, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; item++) {
        const int64_t expert = item / vectors, c = item % vectors * kLanes;
        Vec total{};
        for (int64_t p = first[expert]; p < first[expert + 1]; p++)
          total += load_some(dy.row<T>(p) + c, n - c);
        store_some(sum.row<float>(expert) + c, total, n - c);
      }
    });
  });
}
KERNEL(expert_column_sums)

void expert_gather_backward(Stream& s, In dx, In order, int64_t t, Out sum) {  // [a, d] -> [t, d]
  const int64_t a = dx.size(0), d = dx.size(1), k = t > 0 ? a / t : 0;
  const int32_t* at = order.data<int32_t>();
  if (!check_order(s, order, a, -1)) return;
  int32_t* place = static_cast<int32_t*>(s.scratch(0, static_cast<size_t>(a) * sizeof(int32_t)));
  for (int64_t i = 0; i < a; i++) place[i] = -1;
  for (int64_t p = 0; p < a; p++)
    if (at[p] >= 0) place[at[p]] = static_cast<int32_t>(p);
  with_float(dx.dtype(), [&](auto xt) {
    with_float(sum.dtype(), [&](auto yt) {
      s.parallel(t, 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
          for (int64_t c = 0; c < d; c += kLanes) {
            Vec total{};
            for (int64_t j = 0; j < k; j++)
              if (const int32_t p = place[i * k + j]; p >= 0)
                total += load_some(dx.row<decltype(xt)>(p) + c, d - c);
            store_some(sum.row<decltype(yt)>(i) + c, total, d - c);
          }
      });
    });
  });
}
KERNEL(expert_gather_backward)

// [a, d], [a], [t, k], [t, d] -> [a, d], [t, k]
void expert_combine_backward(Stream& s, In x, In place, In weights, In dy, Out dx, Out dweights) {
  const int64_t t = weights.size(0), k = weights.size(1), a = x.size(0), d = x.size(1);
  const int32_t* at = place.data<int32_t>();
  for (int64_t i = 0; i < a; i++)
    if (at[i] >= a)
      return s.fail("place[%lld] is %d, expected less than %lld", static_cast<long long>(i), at[i],
                    static_cast<long long>(a));
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(a, 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; p++) memset(dx.row<T>(p), 0, static_cast<size_t>(d) * sizeof(T));
    });
    s.parallel(t, 4096 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < k; j++) {
          const int32_t p = at[i * k + j];
          const float weight = weights.row<float>(i)[j];
          Vec along{};
          for (int64_t c = 0; c < d && p >= 0; c += kLanes) {
            const Vec given = load_some(dy.row<T>(i) + c, d - c);
            along += given * load_some(x.row<T>(p) + c, d - c);
            store_some(dx.row<T>(p) + c, weight * given, d - c);
          }
          dweights.row<float>(i)[j] = sum(along);
        }
    });
  });
}
KERNEL(expert_combine_backward)

}  // namespace ss::SS_LEVEL
