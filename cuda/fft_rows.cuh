// Packed sequences as rows of floats for cuFFT: each channel of each sequence of at most l tokens is a
// row of `size`, at least 2 l - 1 so that nothing comes round. cuFFT takes two floats for one complex
// number, so that transforms are half as long; Halves tells their parts apart. (cuFFT's own real
// transforms took 8 kernels for these 4.) Some rows at a time, which mostly stay in the L2 cache from
// step to step.
#pragma once
#include <algorithm>

#include "device/pack.cuh"
#include "device/sequences.cuh"
#include "dispatch.cuh"
#include "fft.h"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int64_t kRoom = 16 << 20;  // bytes of rows at a time, if more than one row
constexpr int kTile = 32, kRows = 8;

struct Rows {
  Sequences sequences;
  Fault* too_long;
  int64_t d, l, size;
  int64_t first, channels;     // of this part
  int64_t sequence, together;  // first sequence of this part, and how many

  __device__ Sequences::Piece piece(int64_t i) const {
    Sequences::Piece p = sequences.whole(i);
    if (p.end - p.begin > l) p.end = p.begin + l;
    return p;
  }
  // Where a row's number k belongs in its sequence.
  template <bool Reversed>
  __device__ int64_t token(int64_t k) const {
    return Reversed ? l - 1 - k : k;
  }
  int64_t count() const { return together * channels; }
};

__global__ void check_rows(const Rows s) {
  s.sequences.check();
  for (int64_t i = threadIdx.x; i < s.sequences.count; i += blockDim.x) {
    const int64_t length = int64_t{s.sequences.offsets[i + 1]} - s.sequences.offsets[i];
    if (length > s.l) s.too_long->report(i, static_cast<int32_t>(length), s.l);
  }
}

__global__ void missing(Fault* fault) { fault->report(0, 0, 0); }
inline void report_missing(Stream& stream, bool found) {
  missing<<<1, 1, 0, stream.handle>>>(stream.fault(
      found ? "cuFFT has no transform of this size"
            : "there is no cuFFT; `selective-scan doctor` tells what was tried and what to install"));
}

// The kernel's rows, with zeros behind them.
__global__ void take_taps(const Rows s, const float* kernel, int64_t stride, float* taps) {
  const int64_t c = s.first + blockIdx.y;
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k < s.size;
       k += int64_t{gridDim.x} * blockDim.x)
    taps[blockIdx.y * s.size + k] = c < s.d && k < s.l ? kernel[c * stride + k] : 0.0f;
}

// x, turned: tiles of kTile tokens and channels. Zeros behind a sequence, and where there is none.
template <bool Reversed, class T>
__global__ void __launch_bounds__(kTile* kRows)
    take_rows(const Rows s, const T* x, int64_t stride, float* rows) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t of = blockIdx.z, k0 = blockIdx.x * int64_t{kTile}, c0 = blockIdx.y * int64_t{kTile};
  const bool there = s.sequence + of < s.sequences.count;
  const Sequences::Piece piece = there ? s.piece(s.sequence + of) : Sequences::Piece{};
  const int64_t length = piece.end - piece.begin, c = s.first + c0 + threadIdx.x;
  const bool column = c < s.d && c0 + threadIdx.x < s.channels;
  for (int64_t i = threadIdx.y; i < kTile; i += kRows) {
    const int64_t t = s.token<Reversed>(k0 + i);
    tile[i][threadIdx.x] =
        column && t >= 0 && t < length ? to_float(x[(piece.begin + t) * stride + c]) : 0.0f;
  }
  __syncthreads();
  const int64_t k = k0 + threadIdx.x;
  for (int64_t i = threadIdx.y; i < kTile && c0 + i < s.channels; i += kRows)
    if (k < s.size) rows[(of * s.channels + c0 + i) * s.size + k] = tile[threadIdx.x][i];
}

// The way back, with D x added.
template <bool Reversed, class T>
__global__ void __launch_bounds__(kTile* kRows)
    give_rows(const Rows s, const float* rows, const T* x, int64_t x_stride, const float* D, T* y,
              int64_t y_stride) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t of = blockIdx.z, k0 = blockIdx.x * int64_t{kTile}, c0 = blockIdx.y * int64_t{kTile};
  if (s.sequence + of >= s.sequences.count) return;
  const Sequences::Piece piece = s.piece(s.sequence + of);
  const int64_t length = piece.end - piece.begin;
  if (Reversed ? s.l - k0 <= 0 || s.l - kTile - k0 >= length : k0 >= length) return;
  for (int64_t i = threadIdx.y; i < kTile && c0 + i < s.channels; i += kRows)
    if (k0 + threadIdx.x < s.l)
      tile[i][threadIdx.x] = rows[(of * s.channels + c0 + i) * s.size + k0 + threadIdx.x];
  __syncthreads();
  const int64_t c = s.first + c0 + threadIdx.x;
  if (c >= s.d || c0 + threadIdx.x >= s.channels) return;
  for (int64_t i = threadIdx.y; i < kTile; i += kRows) {
    const int64_t k = s.token<Reversed>(k0 + i), t = piece.begin + k;
    if (k < 0 || k >= length) continue;
    const float skip = D ? D[c] * to_float(x[t * x_stride + c]) : 0.0f;
    from_float(y[t * y_stride + c], tile[threadIdx.x][i] + skip);
  }
}

// Transforms of half the length m. With z = x[2i] + i x[2i+1], and Z(m - k) conjugated,
// X(k) = ((Z + Z*) - i w (Z - Z*)) / 2 and X(m - k)* has a plus, where w = e^(-pi i k / m); a product
// goes the same way back. A thread takes k and m - k.
__device__ inline float2 times(float2 a, float2 b) {
  return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}
struct Place {
  int64_t k, other;
  float2 w;
  __device__ Place(int64_t k, int64_t m) : k(k), other(k == 0 ? 0 : m - k) {
    sincospif(static_cast<float>(k) / static_cast<float>(m), &w.y, &w.x);
    w.y = -w.y;
  }
};
struct Halves {
  float2 low, high;  // X(k) and X(m - k)*, twice
  __device__ Halves(const float2* z, const Place& at) {
    const float2 a = z[at.k], b = z[at.other];
    const float2 sum{a.x + b.x, a.y - b.y}, turned = times(at.w, {a.x - b.x, a.y + b.y});
    low = {sum.x + turned.y, sum.y - turned.x};
    high = {sum.x - turned.y, sum.y + turned.x};
  }
};
// What the inverse transform of a product is made of; scale: 1 / (8 m).
struct Product {
  float2 first, second;  // of k, and of the other one
  __device__ Product(const Halves& x, const Halves& h, const Place& at, float scale) {
    const float2 low = times(x.low, h.low), high = times(x.high, h.high);
    const float2 even{(low.x + high.x) * scale, (low.y + high.y) * scale};
    const float2 odd =
        times({(low.x - high.x) * scale, (low.y - high.y) * scale}, {at.w.x, -at.w.y});
    first = {even.x - odd.y, even.y + odd.x};
    second = {even.x + odd.y, odd.x - even.y};
  }
  __device__ void store(float2* z, const Place& at) const {
    z[at.k] = first;
    if (at.other != at.k) z[at.other] = second;
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// So that there are few plans.
inline int64_t power_below(int64_t x) {
  int64_t power = 1;
  while (power * 2 <= x) power *= 2;
  return power;
}
inline int64_t power_above(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}
inline unsigned unsigned_of(int64_t x) { return static_cast<unsigned>(x); }

// Rows for `tokens` tokens and a kernel of l taps; `sets` of rows are worked in at a time.
inline Rows rows_of(Stream& stream, In offsets, int64_t tokens, int64_t d, int64_t l, int64_t sets) {
  Rows s{};
  s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, tokens);
  s.too_long = stream.fault("sequence %lld has %d tokens, expected at most %lld, the taps of kernel");
  s.d = d, s.l = l;
  s.size = fft_size(std::max<int64_t>(2 * l - 1, 1));
  const int64_t bytes = s.size * static_cast<int64_t>(sizeof(float)) * sets;
  const int64_t most =
      std::min(power_below(std::max<int64_t>(1, kRoom / bytes)), int64_t{32768});  // of a grid
  s.channels = std::min(most, power_above(d));
  s.together = std::min(most / s.channels, power_above(s.sequences.count));
  return s;
}

// Grids: along a row's numbers, and tiles of all rows.
struct RowGrids {
  unsigned along;
  dim3 tile, tiles;
  explicit RowGrids(const Rows& s)
      : along(unsigned_of(std::min<int64_t>(ceil_div(s.size, 1024), 64))),
        tile(kTile, kRows),
        tiles(unsigned_of(ceil_div(s.size, kTile)), unsigned_of(ceil_div(s.channels, kTile)),
              unsigned_of(s.together)) {}
};

}  // namespace
}  // namespace ss::cuda
