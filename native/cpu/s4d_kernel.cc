// kernel[c, k] = 2 Re(sum over n of W (1 + E)^k): Vandermonde's matrix with the taps cut into rows
// of m, so that k = a m + i and the power is one of a row's start times one of m. That is a product of
// [l / m, 2 n] and [2 n, m] for each channel: two multiplications for each state and tap. The powers
// are made in f64, by one multiplication each. A thread takes a channel.
#include "complex.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kVectors = 4;  // of taps, summed side by side

// Taps of a row: with about sqrt(l) of them there are as few powers as can be.
SS_INLINE int64_t row_length(int64_t l) {
  int64_t m = kVectors * kLanes;
  while (m < 512 && m * m < l) m *= 2;
  return m;
}

struct Work {
  float* powers;   // [m / kLanes][n][re, -im][kLanes]: of 1 + E, 0 to m - 1
  float* start;    // [n][re, im]: of a row
  double* row;     // [n][re, im]: the same in f64, with 2 W
  double* stride;  // [n][re, im]: (1 + E)^m
};

void enter_channel(const float* E, const float* W, int64_t n, int64_t m, const Work& w) {
  for (int64_t j = 0; j < n; j++) {
    const Complex base{1 + static_cast<double>(E[2 * j]), E[2 * j + 1]};
    Complex power{1, 0};
    for (int64_t i = 0; i < m; i++, power = times(power, base)) {
      float* to = w.powers + (i / kLanes * n + j) * 2 * kLanes + i % kLanes;
      to[0] = static_cast<float>(power.re);
      to[kLanes] = static_cast<float>(-power.im);
    }
    w.stride[2 * j] = power.re, w.stride[2 * j + 1] = power.im;
    w.row[2 * j] = 2.0 * W[2 * j], w.row[2 * j + 1] = 2.0 * W[2 * j + 1];
  }
}

// The taps of one row, as far as there are any left.
void make_row(int64_t n, int64_t m, int64_t left, const Work& w, float* taps) {
  for (int64_t j = 0; j < n; j++) {
    const Complex start{w.row[2 * j], w.row[2 * j + 1]};
    w.start[2 * j] = static_cast<float>(start.re);
    w.start[2 * j + 1] = static_cast<float>(start.im);
    const Complex next = times(start, {w.stride[2 * j], w.stride[2 * j + 1]});
    w.row[2 * j] = next.re, w.row[2 * j + 1] = next.im;
  }
  for (int64_t i = 0; i < m && i < left; i += kVectors * kLanes) {
    const float* powers = w.powers + i * n * 2;
    Vec sum[kVectors] = {};
    for (int64_t j = 0; j < n; j++) {
      const float re = w.start[2 * j], im = w.start[2 * j + 1];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const float* at = powers + (v * n + j) * 2 * kLanes;
        sum[v] += re * load(at);
        sum[v] += im * load(at + kLanes);
      }
    }
    for (int v = 0; v < kVectors && i + v * kLanes < left; v++)
      store_some(taps + i + v * kLanes, sum[v], left - i - v * kLanes);
  }
}

}  // namespace

void s4d_kernel(Stream& s, In E, In W, int64_t l, Out kernel) {
  const int64_t d = E.size(0), n = E.size(1), m = row_length(l);
  s.parallel(d, 1, [&](int64_t begin, int64_t end, int worker) {
    Work w{};
    const size_t floats = 2 * n * m + 2 * n, doubles = 4 * n;
    w.row = static_cast<double*>(
        s.scratch(worker, doubles * sizeof(double) + (floats + kLanes) * sizeof(float)));
    w.stride = w.row + 2 * n;
    w.powers = reinterpret_cast<float*>(w.stride + 2 * n);
    w.start = w.powers + 2 * n * m;
    for (int64_t c = begin; c < end; c++) {
      enter_channel(E.row<float>(c), W.row<float>(c), n, m, w);
      for (int64_t k = 0; k < l; k += m) make_row(n, m, l - k, w, kernel.row<float>(c) + k);
    }
  });
}
KERNEL(s4d_kernel)

}  // namespace ss::SS_LEVEL
