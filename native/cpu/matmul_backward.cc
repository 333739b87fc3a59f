// dx = dy W and dW = dy^T x, by the matmul of turned copies; sums of columns; dW of an embedding.
#include "row_pieces.h"

namespace ss::SS_LEVEL {

void matmul(Stream& s, In x, In weight, Opt bias, Out y);

namespace {

// x^T as dense f32: columns of x become rows, blocks of rows at a time.
void turn(Stream& s, In x, float* to) {
  const int64_t rows = x.size(0), columns = x.size(1);
  constexpr int64_t kSide = 32;
  with_float(x.dtype(), [&](auto t) {
    s.parallel(columns, kSide, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = 0; i < rows; i += kSide)
        for (int64_t r = i; r < rows && r < i + kSide; r++) {
          const auto* from = x.row<decltype(t)>(r);
          for (int64_t c = begin; c < end; c++) to[c * rows + r] = to_float(from[c]);
        }
    });
  });
}

View matrix(float* data, int64_t rows, int64_t columns) {
  return {data, {rows, columns}, columns, 2, DType::f32};
}

// y = x w^T, or that and `plus`, which y may be itself: then sums of f32 wait in `room`.
void multiply(Stream& s, const View& x, const View& w, Opt plus, float* room, Out y) {
  if (!plus) return matmul(s, In{&x}, In{&w}, Opt{nullptr}, y);
  const int64_t rows = y.size(0), columns = y.size(1);
  const View sums = matrix(room, rows, columns);
  matmul(s, In{&x}, In{&w}, Opt{nullptr}, Out{&sums});
  with_float(y.dtype(), [&](auto type) {
    using Y = decltype(type);
    s.parallel(rows, 4096 / (columns + 1) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < columns; j += kLanes)
          store_some(y.row<Y>(i) + j,
                     load_some(room + i * columns + j, columns - j) + load_some(plus.row<Y>(i) + j, columns - j),
                     columns - j);
    });
  });
}

}  // namespace

// [m, n], [n, k], [m, k] -> [m, k]
void matmul_input_gradient(Stream& s, In dy, In weight, Opt plus, Out dx) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const Room room(s, n * k + (plus ? dy.size(0) * k : 0));
  if (!room) return;
  turn(s, weight, room.floats());
  multiply(s, *dy.view, matrix(room.floats(), k, n), plus, room.floats() + n * k, dx);
}
KERNEL(matmul_input_gradient)

// [m, n], [m, k], [n, k] -> [n, k]
void matmul_weight_gradient(Stream& s, In dy, In x, Opt plus, Out dweight) {
  const int64_t m = dy.size(0), n = dy.size(1), k = x.size(1);
  const Room room(s, m * (n + k) + (plus ? n * k : 0));
  if (!room) return;
  float *left = room.floats(), *right = left + m * n;
  turn(s, dy, left);
  turn(s, x, right);
  multiply(s, matrix(left, n, m), matrix(right, k, m), plus, right + m * k, dweight);
}
KERNEL(matmul_weight_gradient)

void column_sums(Stream& s, In x, Out sum) {  // [t, d] -> [d]
  const int64_t t = x.size(0), d = x.size(1), pieces = row_pieces(t);
  const Room room(s, pieces * d);
  if (!room) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(pieces, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; p++) {
        float* sums = room.floats() + p * d;
        memset(sums, 0, static_cast<size_t>(d) * sizeof(float));
        for (int64_t i = p * kPieceRows; i < t && i < (p + 1) * kPieceRows; i++)
          for (int64_t j = 0; j < d; j += kLanes)
            add_to(sums + j, load_some(x.row<T>(i) + j, d - j), d - j);
      }
    });
  });
  add_pieces(s, room.floats(), pieces, d, d, sum.data<float>());
}
KERNEL(column_sums)

// Threads take columns, so that rows are added in order. Sums are f32, or dweight itself where it is.
void embedding_backward(Stream& s, In dy, In ids, Opt plus, int64_t rows, Out dweight) {
  const int64_t t = dy.size(0), d = dy.size(1);
  const int32_t* id = ids.data<int32_t>();
  for (int64_t i = 0; i < t; i++)
    if (id[i] < 0 || id[i] >= rows)
      return s.fail("ids[%lld] is %d, expected 0 to %lld", static_cast<long long>(i), id[i],
                    static_cast<long long>(rows - 1));
  const bool direct = dweight.dtype() == DType::f32 && !plus;
  const Room room(s, direct ? 0 : rows * d);
  if (!room) return;
  float* sums = direct ? dweight.data<float>() : room.floats();
  const int64_t stride = direct ? dweight.stride() : d;
  with_float(dy.dtype(), [&](auto yt) {
    with_float(dweight.dtype(), [&](auto wt) {
      using W = decltype(wt);
      s.parallel(d, kLanes, [&](int64_t begin, int64_t end, int) {
        const auto some = static_cast<size_t>(end - begin) * sizeof(float);
        for (int64_t i = 0; i < rows; i++) memset(sums + i * stride + begin, 0, some);
        for (int64_t i = 0; i < t; i++)
          for (int64_t j = begin; j < end; j += kLanes)
            add_to(sums + id[i] * stride + j, load_some(dy.row<decltype(yt)>(i) + j, end - j),
                   end - j);
        for (int64_t i = 0; i < rows && !direct; i++)
          for (int64_t j = begin; j < end; j += kLanes) {
            Vec total = load_some(sums + i * d + j, end - j);
            if (plus) total += load_some(plus.row<W>(i) + j, end - j);
            store_some(dweight.row<W>(i) + j, total, end - j);
          }
      });
    });
  });
}
KERNEL(embedding_backward)

}  // namespace ss::SS_LEVEL
