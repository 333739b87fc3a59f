// The gradients of fft_conv, as convolutions too: with r(k) = dy(L - 1 - k), L being the longest
// sequence's length,
//   du(L - 1 - k) = (kernel * r)(k) + D dy,   dkernel(L - 1 - k) = sum over sequences of (u * r)(k)
// Three transforms forward for each sequence and one back; those of dkernel are summed before the way
// back, sequence after sequence. dD is dkernel(0). Threads take channels as fft_conv's.
#include "fft_rows.h"

namespace ss::SS_LEVEL {
namespace {

struct Back {
  In u, dy;
  Opt D;
  Out du, dkernel, dD;
  Sequences sequences;
  FftRows rows;
};

struct Work {
  int64_t first, channels;
  float *taps, *inputs, *rows, *sums;  // [channels][pitch]: of the kernel, u, r and then du, dkernel
  float *sum, *work;                   // [size]
};

template <class T>
void return_sequence(const Back& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), length = s.sequences.end(sequence) - begin;
  if (length == 0) return;
  const FftRows& r = s.rows;
  const int64_t pitch = r.pitch, last = r.longest - 1;
  for (int64_t c = 0; c < w.channels; c++) {
    memset(w.inputs + c * pitch + length, 0, (r.size - length) * sizeof(float));
    memset(w.rows + c * pitch, 0, r.size * sizeof(float));
  }
  for (int64_t t = 0; t < length; t++) {
    const T *u = s.u.row<T>(begin + t) + w.first, *dy = s.dy.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) {
      w.inputs[c * pitch + t] = to_float(u[c]);
      w.rows[c * pitch + last - t] = to_float(dy[c]);
    }
  }
  const float scale = 1.0f / static_cast<float>(r.size);
  for (int64_t c = 0; c < w.channels; c++) {
    float *input = w.inputs + c * pitch, *row = w.rows + c * pitch;
    pffft_transform(r.setup, input, input, w.work, PFFFT_FORWARD);
    pffft_transform(r.setup, row, row, w.work, PFFFT_FORWARD);
    pffft_zconvolve_accumulate(r.setup, input, row, w.sums + c * pitch, scale);
    memset(w.sum, 0, r.size * sizeof(float));
    pffft_zconvolve_accumulate(r.setup, row, w.taps + c * pitch, w.sum, scale);
    pffft_transform(r.setup, w.sum, row, w.work, PFFFT_BACKWARD);
  }
  for (int64_t t = 0; t < length; t++) {
    const T* dy = s.dy.row<T>(begin + t) + w.first;
    T* du = s.du.row<T>(begin + t) + w.first;
    for (int64_t c = 0; c < w.channels; c++) {
      const float skip = s.D ? s.D.data<float>()[w.first + c] * to_float(dy[c]) : 0.0f;
      from_float(du[c], w.rows[c * pitch + last - t] + skip);
    }
  }
}

void give_taps(const Back& s, const Work& w) {
  const int64_t l = s.dkernel.size(1);
  for (int64_t c = 0; c < w.channels; c++) {
    float *sums = w.sums + c * s.rows.pitch, *to = s.dkernel.row<float>(w.first + c);
    pffft_transform(s.rows.setup, sums, sums, w.work, PFFFT_BACKWARD);
    for (int64_t k = 0; k < l; k++) to[k] = k < s.rows.longest ? sums[s.rows.longest - 1 - k] : 0.0f;
    if (s.D) s.dD.data<float>()[w.first + c] = to[0];
  }
}

}  // namespace

void fft_conv_backward(Stream& stream, In u, In kernel, Opt D, In offsets, In dy, Out du, Out dkernel,
                       Out dD) {
  const int64_t d = u.size(1);
  const Sequences sequences{offsets.data<int32_t>(), nullptr, offsets.size(0) - 1, 0};
  FftRows rows{};
  if (!sequences.check(stream, u.size(0)) || !fft_rows(stream, sequences, kernel.size(1), rows)) {
    for (int64_t c = 0; c < d; c++) {
      memset(dkernel.row<float>(c), 0, static_cast<size_t>(dkernel.size(1)) * sizeof(float));
      if (D) dD.data<float>()[c] = 0;
    }
    return;
  }
  const int64_t pitch = rows.pitch, width = fft_width(stream, d);
  const Back back{u, dy, D, du, dkernel, dD, sequences, rows};
  with_float(u.dtype(), [&](auto t) {
    using T = decltype(t);
    stream.parallel((d + width - 1) / width, 1, [&](int64_t begin, int64_t end, int worker) {
      Work w{};
      w.taps = static_cast<float*>(
          stream.scratch(worker, (4 * width + 2) * static_cast<size_t>(pitch) * sizeof(float)));
      w.inputs = w.taps + width * pitch;
      w.rows = w.inputs + width * pitch;
      w.sums = w.rows + width * pitch;
      w.sum = w.sums + width * pitch;
      w.work = w.sum + pitch;
      for (int64_t block = begin; block < end; block++) {
        w.first = block * width;
        w.channels = d - w.first < width ? d - w.first : width;
        transform_taps(rows, kernel, w.first, w.channels, w.taps, w.work);
        memset(w.sums, 0, static_cast<size_t>(width * pitch) * sizeof(float));
        for (int64_t i = 0; i < sequences.count; i++) return_sequence<T>(back, w, i);
        give_taps(back, w);
      }
    });
  });
}
KERNEL(fft_conv_backward)

}  // namespace ss::SS_LEVEL
