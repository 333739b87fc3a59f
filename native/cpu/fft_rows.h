// Packed sequences as rows of an FFT: how long they are, and what transforms take.
#pragma once
#include "fft.h"
#include "sequences.h"
#include "simd.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kMostChannels = 16;

struct FftRows {
  PFFFT_Setup* setup;
  int64_t size, pitch, longest;  // pitch: of rows, which a power of two would put into one cache set
};

// For convolutions with a kernel of l taps. False: there is nothing to do, or the stream has failed.
SS_INLINE bool fft_rows(Stream& stream, const Sequences& sequences, int64_t l, FftRows& rows) {
  int64_t longest = 0;
  for (int64_t i = 0; i < sequences.count; i++) {
    const int64_t length = sequences.end(i) - sequences.begin(i);
    if (length > longest) longest = length;
    if (length > l) {
      stream.fail("sequence %d has %d tokens, expected at most %d, the taps of kernel", int(i),
                  int(length), int(l));
      return false;
    }
  }
  if (longest == 0) return false;
  if (longest > kMostFft / 2) {
    stream.fail("a sequence has %d tokens, expected at most %d", int(longest), int(kMostFft / 2));
    return false;
  }
  const int64_t size = fft_size(2 * longest - 1);
  rows = {fft_setup(size), size, size + 16, longest};
  if (!rows.setup) stream.fail("there is no memory for an FFT of %d numbers", int(size));
  return rows.setup != nullptr;
}

// Channels that a thread takes at a time: less where threads would have nothing to do.
SS_INLINE int64_t fft_width(const Stream& stream, int64_t d) {
  int64_t width = kMostChannels;
  while (width > 4 && d < width * stream.threads()) width /= 2;
  return width;
}

// The first taps of `channels` kernels with zeros behind them, transformed.
SS_INLINE void transform_taps(const FftRows& r, In kernel, int64_t first, int64_t channels, float* taps,
                              float* work) {
  for (int64_t c = 0; c < channels; c++) {
    float* row = taps + c * r.pitch;
    memcpy(row, kernel.row<float>(first + c), r.longest * sizeof(float));
    memset(row + r.longest, 0, (r.size - r.longest) * sizeof(float));
    pffft_transform(r.setup, row, row, work, PFFFT_FORWARD);
  }
}

}  // namespace
}  // namespace ss::SS_LEVEL
