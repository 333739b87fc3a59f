// y[t, c] = sum over k of kernel[c, k] u[t - k, c] + D u along each sequence: both are transformed
// with zeros behind them, to twice the length of the longest sequence, so that nothing comes round.
// A thread takes some channels: a cache line of each token, turned into rows, whose FFTs PFFFT makes
// four floats at a time, its products in the order that the transforms leave. 2.5 F log2 F operations
// each for u and for y, and for the kernel once; 2 F floats a channel are worked in.
#include "fft.h"
#include "sequences.h"
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kMostChannels = 16;

struct Conv {
  In u, kernel;
  Opt D;
  Out y;
  Sequences sequences;
  PFFFT_Setup* setup;
  int64_t d, size, pitch, longest;  // pitch: of rows, which a power of two would put into one cache set
};

struct Work {
  int64_t first, channels;
  float *taps, *rows;   // [channels][pitch]: transforms of the kernel; of u, or u and y themselves
  float *sum, *work;    // [size]
};

void enter_block(const Conv& s, const Work& w) {
  for (int64_t c = 0; c < w.channels; c++) {
    float* row = w.taps + c * s.pitch;
    memcpy(row, s.kernel.row<float>(w.first + c), s.longest * sizeof(float));
    memset(row + s.longest, 0, (s.size - s.longest) * sizeof(float));
    pffft_transform(s.setup, row, row, w.work, PFFFT_FORWARD);
  }
}

template <class T>
void convolve_sequence(const Conv& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), length = s.sequences.end(sequence) - begin;
  if (length == 0) return;
  for (int64_t t = 0; t < length; t++) {
    const T* u = s.u.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) w.rows[c * s.pitch + t] = to_float(u[c]);
  }
  for (int64_t c = 0; c < w.channels; c++) {
    float* row = w.rows + c * s.pitch;
    memset(row + length, 0, (s.size - length) * sizeof(float));
    pffft_transform(s.setup, row, row, w.work, PFFFT_FORWARD);
    memset(w.sum, 0, s.size * sizeof(float));
    pffft_zconvolve_accumulate(s.setup, row, w.taps + c * s.pitch, w.sum, 1.0f / s.size);
    pffft_transform(s.setup, w.sum, row, w.work, PFFFT_BACKWARD);
  }
  for (int64_t t = 0; t < length; t++) {
    const T* u = s.u.row<T>(begin + t) + w.first;
    T* y = s.y.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) {
      const float skip = s.D ? s.D.data<float>()[w.first + c] * to_float(u[c]) : 0.0f;
      from_float(y[c], w.rows[c * s.pitch + t] + skip);
    }
  }
}

}  // namespace

void fft_conv(Stream& stream, In u, In kernel, Opt D, In offsets, Out y) {
  const int64_t d = u.size(1), l = kernel.size(1);
  const Sequences sequences{offsets.data<int32_t>(), nullptr, offsets.size(0) - 1, 0};
  if (d == 0 || !sequences.check(stream, u.size(0))) return;
  int64_t longest = 0;
  for (int64_t i = 0; i < sequences.count; i++) {
    const int64_t length = sequences.end(i) - sequences.begin(i);
    if (length > longest) longest = length;
    if (length > l)
      return stream.fail("sequence %d has %d tokens, expected at most %d, the taps of kernel", int(i),
                         int(length), int(l));
  }
  if (longest == 0) return;
  if (longest > kMostFft / 2)
    return stream.fail("a sequence has %d tokens, expected at most %d", int(longest), int(kMostFft / 2));
  const int64_t size = fft_size(2 * longest - 1);
  PFFFT_Setup* setup = fft_setup(size);
  if (!setup) return stream.fail("there is no memory for an FFT of %d numbers", int(size));
  const int64_t pitch = size + 16;
  const Conv conv{u, kernel, D, y, sequences, setup, d, size, pitch, longest};

  int64_t width = kMostChannels;  // less where threads would have nothing to do
  while (width > 4 && d < width * stream.threads()) width /= 2;
  with_float(u.dtype(), [&](auto t) {
    using T = decltype(t);
    stream.parallel((d + width - 1) / width, 1, [&](int64_t begin, int64_t end, int worker) {
      Work w{};
      w.taps = static_cast<float*>(
          stream.scratch(worker, (2 * width + 2) * static_cast<size_t>(pitch) * sizeof(float)));
      w.rows = w.taps + width * pitch;
      w.sum = w.rows + width * pitch;
      w.work = w.sum + pitch;
      for (int64_t block = begin; block < end; block++) {
        w.first = block * width;
        w.channels = d - w.first < width ? d - w.first : width;
        enter_block(conv, w);
        for (int64_t i = 0; i < sequences.count; i++) convolve_sequence<T>(conv, w, i);
      }
    });
  });
}
KERNEL(fft_conv)

}  // namespace ss::SS_LEVEL
