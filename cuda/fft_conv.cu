// y[t, c] = sum over k of kernel[c, k] u[t - k, c] + D u along each sequence of at most l tokens.
// Rows of `size` floats, at least 2 l - 1 so that nothing comes round: u is turned into a row for each
// channel of each sequence, cuFFT transforms rows in place, they are multiplied by the kernel's, and
// back. Two floats are taken for one complex number, so that transforms are half as long; multiply()
// tells their parts apart. (cuFFT's own real transforms took 8 kernels for these 4.) Some rows at a
// time, which mostly stay in the L2 cache from step to step.
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

template <class T>
struct Conv {
  const T* u;
  const float *kernel, *D;
  T* y;
  int64_t u_stride, kernel_stride, y_stride;
  Sequences sequences;
  Fault* too_long;
  int64_t d, l, size;
  int64_t first, channels;     // of this part
  int64_t sequence, together;  // first sequence of this part, and how many
  float *taps, *rows;          // [channels][size], [together][channels][size]

  __device__ Sequences::Piece piece(int64_t i) const {
    Sequences::Piece p = sequences.whole(i);
    if (p.end - p.begin > l) p.end = p.begin + l;
    return p;
  }
};

template <class T>
__global__ void check(const Conv<T> s) {
  s.sequences.check();
  for (int64_t i = threadIdx.x; i < s.sequences.count; i += blockDim.x) {
    const int64_t length = int64_t{s.sequences.offsets[i + 1]} - s.sequences.offsets[i];
    if (length > s.l) s.too_long->report(i, static_cast<int32_t>(length), s.l);
  }
}

__global__ void missing(Fault* fault) { fault->report(0, 0, 0); }

// The kernel's rows, with zeros behind them.
template <class T>
__global__ void take_taps(const Conv<T> s) {
  const int64_t c = s.first + blockIdx.y;
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k < s.size;
       k += int64_t{gridDim.x} * blockDim.x)
    s.taps[blockIdx.y * s.size + k] = c < s.d && k < s.l ? s.kernel[c * s.kernel_stride + k] : 0.0f;
}

// u, turned: tiles of kTile tokens and channels. Zeros behind a sequence, and where there is none.
template <class T>
__global__ void __launch_bounds__(kTile* kRows) take_rows(const Conv<T> s) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t of = blockIdx.z, k0 = blockIdx.x * int64_t{kTile}, c0 = blockIdx.y * int64_t{kTile};
  const bool there = s.sequence + of < s.sequences.count;
  const Sequences::Piece piece = there ? s.piece(s.sequence + of) : Sequences::Piece{};
  const int64_t length = piece.end - piece.begin;
  if (k0 < length) {
    const int64_t c = s.first + c0 + threadIdx.x;
    for (int64_t i = threadIdx.y; i < kTile; i += kRows) {
      const bool inside = k0 + i < length && c < s.d && c0 + threadIdx.x < s.channels;
      tile[i][threadIdx.x] = inside ? to_float(s.u[(piece.begin + k0 + i) * s.u_stride + c]) : 0.0f;
    }
  }
  __syncthreads();
  const int64_t k = k0 + threadIdx.x;
  for (int64_t i = threadIdx.y; i < kTile && c0 + i < s.channels; i += kRows)
    if (k < s.size)
      s.rows[(of * s.channels + c0 + i) * s.size + k] = k0 < length ? tile[threadIdx.x][i] : 0.0f;
}

// Of two transforms of half the length m, the transform of their convolution. With z = x[2i] + i
// x[2i+1], and Z(m - k) conjugated, X(k) = ((Z + Z*) - i w (Z - Z*)) / 2 and X(m - k)* has a plus, where
// w = e^(-pi i k / m); the product goes the same way back. A thread takes k and m - k.
__device__ float2 times(float2 a, float2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
struct Halves {
  float2 low, high;  // X(k) and X(m - k)*, twice
  __device__ Halves(const float2* z, int64_t k, int64_t other, float2 w) {
    const float2 a = z[k], b = z[other];
    const float2 sum{a.x + b.x, a.y - b.y}, turned = times(w, {a.x - b.x, a.y + b.y});
    low = {sum.x + turned.y, sum.y - turned.x};
    high = {sum.x - turned.y, sum.y + turned.x};
  }
};
template <class T>
__global__ void multiply(const Conv<T> s) {
  const int64_t row = blockIdx.y, m = s.size / 2;
  const float scale = 0.125f / static_cast<float>(m);
  const float2* taps = reinterpret_cast<const float2*>(s.taps + row % s.channels * s.size);
  float2* numbers = reinterpret_cast<float2*>(s.rows + row * s.size);
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k <= m / 2;
       k += int64_t{gridDim.x} * blockDim.x) {
    float2 w;
    sincospif(static_cast<float>(k) / static_cast<float>(m), &w.y, &w.x);
    w.y = -w.y;
    const int64_t other = k == 0 ? 0 : m - k;
    const Halves x(numbers, k, other, w), h(taps, k, other, w);
    const float2 low = times(x.low, h.low), high = times(x.high, h.high);
    const float2 even{(low.x + high.x) * scale, (low.y + high.y) * scale};
    const float2 odd = times({(low.x - high.x) * scale, (low.y - high.y) * scale}, {w.x, -w.y});
    numbers[k] = {even.x - odd.y, even.y + odd.x};
    if (other != k) numbers[other] = {even.x + odd.y, odd.x - even.y};
  }
}

// The way back, with D u added.
template <class T>
__global__ void __launch_bounds__(kTile* kRows) give_rows(const Conv<T> s) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t of = blockIdx.z, k0 = blockIdx.x * int64_t{kTile}, c0 = blockIdx.y * int64_t{kTile};
  if (s.sequence + of >= s.sequences.count) return;
  const Sequences::Piece piece = s.piece(s.sequence + of);
  const int64_t length = piece.end - piece.begin;
  if (k0 >= length) return;
  for (int64_t i = threadIdx.y; i < kTile && c0 + i < s.channels; i += kRows)
    if (k0 + threadIdx.x < length)
      tile[i][threadIdx.x] = s.rows[(of * s.channels + c0 + i) * s.size + k0 + threadIdx.x];
  __syncthreads();
  const int64_t c = s.first + c0 + threadIdx.x;
  if (c >= s.d || c0 + threadIdx.x >= s.channels) return;
  for (int64_t i = threadIdx.y; i < kTile && k0 + i < length; i += kRows) {
    const int64_t t = piece.begin + k0 + i;
    const float skip = s.D ? s.D[c] * to_float(s.u[t * s.u_stride + c]) : 0.0f;
    from_float(s.y[t * s.y_stride + c], tile[threadIdx.x][i] + skip);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// So that there are few plans.
int64_t power_below(int64_t x) {
  int64_t power = 1;
  while (power * 2 <= x) power *= 2;
  return power;
}
int64_t power_above(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

template <class T>
bool convolve(Stream& stream, Conv<T> s) {
  const cudaStream_t on = stream.handle;
  const int64_t count = s.sequences.count, row_bytes = s.size * static_cast<int64_t>(sizeof(float));
  const int64_t most =
      std::min(power_below(std::max<int64_t>(1, kRoom / row_bytes)), int64_t{32768});  // of a grid
  s.channels = std::min(most, power_above(s.d));
  s.together = std::min(most / s.channels, power_above(count));
  const int64_t rows = s.together * s.channels;
  Fft& fft = *stream.fft;
  const Fft::Plan &of_taps = fft.plan(s.size / 2, s.channels), &of_rows = fft.plan(s.size / 2, rows);
  if (!of_taps.usable || !of_rows.usable) return false;
  const int64_t workspace = std::max(of_taps.workspace, of_rows.workspace);
  const Scratch scratch(stream, (rows + s.channels) * row_bytes + workspace);
  if (!scratch.floats()) return true;  // the queue reports it
  s.taps = scratch.floats();
  s.rows = s.taps + s.channels * s.size;
  void* work = s.rows + rows * s.size;
  float2 *taps = reinterpret_cast<float2*>(s.taps), *numbers = reinterpret_cast<float2*>(s.rows);

  check<T><<<1, 256, 0, on>>>(s);
  const auto unsigned_of = [](int64_t x) { return static_cast<unsigned>(x); };
  const unsigned along = unsigned_of(std::min<int64_t>(ceil_div(s.size, 1024), 64));
  const unsigned across = unsigned_of(ceil_div(s.channels, kTile)), deep = unsigned_of(s.together);
  const dim3 tile(kTile, kRows), tiles(unsigned_of(ceil_div(s.size, kTile)), across, deep);
  for (s.first = 0; s.first < s.d; s.first += s.channels) {
    take_taps<T><<<dim3(along, unsigned_of(s.channels)), 256, 0, on>>>(s);
    if (!fft.run(on, of_taps, Fft::forward, taps, work)) return false;
    for (s.sequence = 0; s.sequence < count; s.sequence += s.together) {
      take_rows<T><<<tiles, tile, 0, on>>>(s);
      if (!fft.run(on, of_rows, Fft::forward, numbers, work)) return false;
      multiply<T><<<dim3(along, unsigned_of(rows)), 256, 0, on>>>(s);
      if (!fft.run(on, of_rows, Fft::back, numbers, work)) return false;
      give_rows<T><<<tiles, tile, 0, on>>>(s);
    }
  }
  return true;
}

}  // namespace

void fft_conv(Stream& stream, In u, In kernel, Opt D, In offsets, Out y) {
  const int64_t t = u.size(0), d = u.size(1), l = kernel.size(1), count = offsets.size(0) - 1;
  if (t == 0 || d == 0 || count == 0) return;
  const bool found = stream.fft->find();
  bool done = false;
  if (found) {
    with_float(u.dtype(), [&](auto type) {
      using T = decltype(type);
      Conv<T> s{};
      s.u = u.data<T>(), s.u_stride = u.stride();
      s.y = y.data<T>(), s.y_stride = y.stride();
      s.kernel = kernel.data<float>(), s.kernel_stride = kernel.stride();
      if (D) s.D = D.data<float>();
      s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t);
      s.too_long = stream.fault("sequence %lld has %d tokens, expected at most %lld, the taps of kernel");
      s.d = d, s.l = l;
      s.size = fft_size(std::max<int64_t>(2 * l - 1, 1));
      done = convolve(stream, s);
    });
  }
  if (!done)
    missing<<<1, 1, 0, stream.handle>>>(stream.fault(
        found ? "cuFFT has no transform of this size"
              : "there is no cuFFT; `selective-scan doctor` tells what was tried and what to install"));
}
KERNEL(fft_conv)

}  // namespace ss::cuda
