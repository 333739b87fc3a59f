// The gradients of the norms, whose statistics are computed again:
//   rms:   r = 1 / sqrt(mean(x^2) + eps), g = dy w,  dx = r (g - x r^2 mean(g x)),  dw = sum dy x r
//   layer: v = (x - mean) r,              g = dy w,  dx = r (g - mean(g) - v mean(g v)),
//          dw = sum dy v, db = sum dy
// A thread takes pieces of kPieceRows rows, and sums dw and db over each.
#include <math.h>

#include "row_pieces.h"

namespace ss::SS_LEVEL {
namespace {

// v[j] of a row as f32, the padding up to a whole Vec filled with `rest`.
template <class T>
SS_INLINE void load_row(const T* from, int64_t d, float* to) {
  for (int64_t j = 0; j < d; j += kLanes) store(to + j, load_some(from + j, d - j));
}
SS_INLINE Vec weight_at(const float* weight, int64_t j, int64_t left) {
  return weight ? load_some(weight + j, left) : splat(1);
}

// write(j, dx, r, left) gets one row of dx, and the row's r; dw is added to.
template <class F>
SS_INLINE void rms_row(const float* x, const float* g, const float* dy, float eps, int64_t d,
                       float* dw, F&& write) {
  Vec squares{}, products{};
  for (int64_t j = 0; j < d; j += kLanes) {
    squares += load(x + j) * load(x + j);
    products += load(x + j) * load(g + j);
  }
  const float r = 1.0f / sqrtf(sum(squares) / static_cast<float>(d) + eps);
  const float along = sum(products) / static_cast<float>(d) * r * r;
  for (int64_t j = 0; j < d; j += kLanes) {
    const int64_t left = d - j;
    add_to(dw + j, load(dy + j) * load(x + j) * r, left);
    write(j, (load(g + j) - load(x + j) * along) * r, r, left);
  }
}

// body(i, rows of f32: x, g and dy, padded with zeros; sums) for each row i.
template <class X, class T, class F>
SS_INLINE void for_rows(Stream& s, In x, const float* weight, In dy, float* sums, int64_t width,
                        F&& body) {
  const int64_t t = x.size(0), d = x.size(1), padded = (d + kLanes - 1) / kLanes * kLanes;
  s.parallel(row_pieces(t), 1, [&](int64_t begin, int64_t end, int worker) {
    float* row = static_cast<float*>(
        s.scratch(worker, static_cast<size_t>(3 * padded + kLanes) * sizeof(float)));
    float *g = row + padded, *dy_row = g + padded;
    for (int64_t p = begin; p < end; p++) {
      float* own = sums + p * width;
      memset(own, 0, static_cast<size_t>(width) * sizeof(float));
      for (int64_t i = p * kPieceRows; i < t && i < (p + 1) * kPieceRows; i++) {
        load_row(x.row<X>(i), d, row);
        load_row(dy.row<T>(i), d, dy_row);
        for (int64_t j = 0; j < d; j += kLanes)
          store(g + j, load(dy_row + j) * weight_at(weight, j, d - j));
        body(i, row, g, dy_row, own);
      }
    }
  });
}

}  // namespace

void rms_norm_backward(Stream& s, In x, In weight, In dy, float eps, Out dx, Out dweight) {
  const int64_t d = x.size(1), pieces = row_pieces(x.size(0));
  const Room room(s, pieces * d);
  if (!room) return;
  with_float(x.dtype(), [&](auto xt) {
    with_float(dy.dtype(), [&](auto yt) {
      using X = decltype(xt);
      for_rows<X, decltype(yt)>(
          s, x, weight.data<float>(), dy, room.floats(), d,
          [&](int64_t i, const float* row, const float* g, const float* dy_row, float* sums) {
            X* to = dx.row<X>(i);
            rms_row(row, g, dy_row, eps, d, sums,
                    [&](int64_t j, Vec v, float, int64_t left) { store_some(to + j, v, left); });
          });
    });
  });
  add_pieces(s, room.floats(), pieces, d, d, dweight.data<float>());
}
KERNEL(rms_norm_backward)

void add_rms_norm_backward(Stream& s, In total, In weight, In dy, Opt dsum, OptInOut normed, float eps,
                           Out dx, Out dresidual, Out dweight) {
  const int64_t d = total.size(1), pieces = row_pieces(total.size(0));
  const Room room(s, pieces * d);
  if (!room) return;
  with_float(dy.dtype(), [&](auto yt) {
    using T = decltype(yt);
    for_rows<float, T>(
        s, total, weight.data<float>(), dy, room.floats(), d,
        [&](int64_t i, const float* row, const float* g, const float* dy_row, float* sums) {
          rms_row(row, g, dy_row, eps, d, sums, [&](int64_t j, Vec v, float r, int64_t left) {
            if (dsum) v += load_some(dsum.row<float>(i) + j, left);
            store_some(dx.row<T>(i) + j, v, left);
            store_some(dresidual.row<float>(i) + j, v, left);
            if (normed)
              store_some(normed.row<T>(i) + j, load(row + j) * r * weight_at(weight.data<float>(), j, left), left);
          });
        });
  });
  add_pieces(s, room.floats(), pieces, d, d, dweight.data<float>());
}
KERNEL(add_rms_norm_backward)

void layer_norm_backward(Stream& s, In x, Opt weight, In dy, float eps, Out dx, Out dweight,
                         Out dbias) {
  const int64_t d = x.size(1), pieces = row_pieces(x.size(0));
  const Room room(s, pieces * 2 * d);
  if (!room) return;
  const float many = static_cast<float>(d);
  with_float(x.dtype(), [&](auto xt) {
    with_float(dy.dtype(), [&](auto yt) {
      using X = decltype(xt);
      for_rows<X, decltype(yt)>(
          s, x, weight ? weight.data<float>() : nullptr, dy, room.floats(), 2 * d,
          [&](int64_t i, float* row, const float* g, const float* dy_row, float* sums) {
            Vec total{}, squares{}, g_total{}, products{};
            for (int64_t j = 0; j < d; j += kLanes) total += load(row + j);
            const float mean = sum(total) / many;
            // Padding becomes the mean itself, so that it adds nothing.
            for (int64_t j = d; j % kLanes != 0; j++) row[j] = mean;
            for (int64_t j = 0; j < d; j += kLanes) {
              const Vec v = load(row + j) - mean;
              store(row + j, v);
              squares += v * v;
              products += v * load(g + j);
              g_total += load(g + j);
            }
            const float r = 1.0f / sqrtf(sum(squares) / many + eps);
            const float along = sum(products) / many * r * r, level = sum(g_total) / many;
            for (int64_t j = 0; j < d; j += kLanes) {
              const int64_t left = d - j;
              const Vec v = load(row + j), dy_j = load(dy_row + j);
              add_to(sums + j, dy_j * v * r, left);
              add_to(sums + d + j, dy_j, left);
              store_some(dx.row<X>(i) + j, (load(g + j) - level - v * along) * r, left);
            }
          });
    });
  });
  add_pieces(s, room.floats(), pieces, 2 * d, d, dweight.data<float>());
  add_pieces(s, room.floats() + d, pieces, 2 * d, d, dbias.data<float>());
}
KERNEL(layer_norm_backward)

}  // namespace ss::SS_LEVEL
