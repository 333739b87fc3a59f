// dW = 2 P* and dE = 2 (W Q)*, with P = sum over k of dkernel(k) (1 + E)^k and Q = sum over k of
// k dkernel(k) (1 + E)^(k - 1). Taps are cut into rows of m, as in s4d_kernel: of each row, from powers
// 0 to m - 1 that are made once, come its own P and Q in f32, four multiplications for each tap and
// state; (1 + E)^(a m), in f64, puts row a into its place. A thread takes a channel.
#include "complex.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

// Taps of a row: with about sqrt(l) of them there are as few powers as can be.
SS_INLINE int64_t row_length(int64_t l) {
  int64_t m = 64;
  while (m < 512 && m * m < l) m *= 2;
  return m;
}

constexpr int64_t kParts = 4;  // of a power (real, imaginary), and of its derivative

// A power of 1 + E, and its derivative.
struct Turn {
  Complex power, slope;
};
SS_INLINE Turn times(Turn a, Turn b) {
  return {times(a.power, b.power), plus(times(a.power, b.slope), times(a.slope, b.power))};
}

void enter_channel(const float* E, int64_t n, int64_t m, float* powers, Turn* stride) {
  for (int64_t j = 0; j < n; j++, powers += kParts * m) {
    const Complex base{1 + static_cast<double>(E[2 * j]), E[2 * j + 1]};
    Complex power{1, 0}, before{};
    for (int64_t i = 0; i < m; i++, before = power, power = times(power, base)) {
      powers[i] = static_cast<float>(power.re);
      powers[m + i] = static_cast<float>(power.im);
      powers[2 * m + i] = static_cast<float>(static_cast<double>(i) * before.re);
      powers[3 * m + i] = static_cast<float>(static_cast<double>(i) * before.im);
    }
    stride[j] = {power, times(static_cast<double>(m), before)};
  }
}

}  // namespace

void s4d_kernel_backward(Stream& s, In E, In W, In dkernel, Out dE, Out dW) {
  const int64_t d = E.size(0), n = E.size(1), l = dkernel.size(1), m = row_length(l);
  s.parallel(d, 1, [&](int64_t begin, int64_t end, int worker) {
    const size_t turns = 3 * static_cast<size_t>(n), floats = static_cast<size_t>(kParts * n * m + m);
    Turn* stride = static_cast<Turn*>(
        s.scratch(worker, turns * sizeof(Turn) + (floats + kLanes) * sizeof(float)));
    Turn *start = stride + n, *sums = start + n;  // of a row; P and Q so far
    float *row = reinterpret_cast<float*>(sums + n), *powers = row + m;
    for (int64_t c = begin; c < end; c++) {
      enter_channel(E.row<float>(c), n, m, powers, stride);
      for (int64_t j = 0; j < n; j++) start[j] = {{1, 0}, {}}, sums[j] = {};
      for (int64_t k = 0; k < l; k += m) {
        const int64_t taps = l - k < m ? l - k : m;
        memcpy(row, dkernel.row<float>(c) + k, static_cast<size_t>(taps) * sizeof(float));
        memset(row + taps, 0, static_cast<size_t>(m - taps) * sizeof(float));
        for (int64_t j = 0; j < n; j++) {
          const float* at = powers + j * kParts * m;
          Vec own[kParts] = {};
          for (int64_t i = 0; i < m; i += kLanes) {
            const Vec tap = load(row + i);
#pragma GCC unroll 4
            for (int64_t part = 0; part < kParts; part++) own[part] += tap * load(at + part * m + i);
          }
          const Turn of_row =
              times(start[j], {{sum(own[0]), sum(own[1])}, {sum(own[2]), sum(own[3])}});
          sums[j] = {plus(sums[j].power, of_row.power), plus(sums[j].slope, of_row.slope)};
          start[j] = times(start[j], stride[j]);
        }
      }
      for (int64_t j = 0; j < n; j++) {
        const Complex w = complex_at(W.row<float>(c), j), e = times(2, times(w, sums[j].slope));
        put_complex(dW.row<float>(c), j, {2 * sums[j].power.re, -2 * sums[j].power.im});
        put_complex(dE.row<float>(c), j, {e.re, -e.im});
      }
    }
  });
}
KERNEL(s4d_kernel_backward)

}  // namespace ss::SS_LEVEL
