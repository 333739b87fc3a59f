// y[t, c] = sum over k of kernel[c, k] u[t - k, c] + D u along each sequence: both are transformed
// with zeros behind them, to twice the length of the longest sequence, so that nothing comes round.
// A thread takes some channels: a cache line of each token, turned into rows, whose FFTs PFFFT makes
// four floats at a time, its products in the order that the transforms leave. 2.5 F log2 F operations
// each for u and for y, and for the kernel once; 2 F floats a channel are worked in.
#include "fft_rows.h"

namespace ss::SS_LEVEL {
namespace {

struct Conv {
  In u, kernel;
  Opt D;
  Out y;
  Sequences sequences;
  FftRows rows;
};

struct Work {
  int64_t first, channels;
  float *taps, *rows;   // [channels][pitch]: transforms of the kernel; of u, or u and y themselves
  float *sum, *work;    // [size]
};

template <class T>
void convolve_sequence(const Conv& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), length = s.sequences.end(sequence) - begin;
  if (length == 0) return;
  PFFFT_Setup* const setup = s.rows.setup;
  const int64_t size = s.rows.size, pitch = s.rows.pitch;
  for (int64_t t = 0; t < length; t++) {
    const T* u = s.u.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) w.rows[c * pitch + t] = to_float(u[c]);
  }
  for (int64_t c = 0; c < w.channels; c++) {
    float* row = w.rows + c * pitch;
    memset(row + length, 0, (size - length) * sizeof(float));
    pffft_transform(setup, row, row, w.work, PFFFT_FORWARD);
    memset(w.sum, 0, size * sizeof(float));
    pffft_zconvolve_accumulate(setup, row, w.taps + c * pitch, w.sum, 1.0f / size);
    pffft_transform(setup, w.sum, row, w.work, PFFFT_BACKWARD);
  }
  for (int64_t t = 0; t < length; t++) {
    const T* u = s.u.row<T>(begin + t) + w.first;
    T* y = s.y.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) {
      const float skip = s.D ? s.D.data<float>()[w.first + c] * to_float(u[c]) : 0.0f;
      from_float(y[c], w.rows[c * pitch + t] + skip);
    }
  }
}

}  // namespace

void fft_conv(Stream& stream, In u, In kernel, Opt D, In offsets, Out y) {
  const int64_t d = u.size(1);
  const Sequences sequences{offsets.data<int32_t>(), nullptr, offsets.size(0) - 1, 0};
  FftRows rows{};
  if (d == 0 || !sequences.check(stream, u.size(0)) ||
      !fft_rows(stream, sequences, kernel.size(1), rows))
    return;
  const int64_t pitch = rows.pitch, width = fft_width(stream, d);
  const Conv conv{u, kernel, D, y, sequences, rows};
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
        transform_taps(rows, kernel, w.first, w.channels, w.taps, w.work);
        for (int64_t i = 0; i < sequences.count; i++) convolve_sequence<T>(conv, w, i);
      }
    });
  });
}
KERNEL(fft_conv)

}  // namespace ss::SS_LEVEL
