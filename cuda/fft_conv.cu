// y[t, c] = sum over k of kernel[c, k] u[t - k, c] + D u along each sequence of at most l tokens: u is
// turned into a row for each channel of each sequence (fft_rows.cuh), cuFFT transforms rows in place,
// they are multiplied by the kernel's, and back.
#include "fft_rows.cuh"

namespace ss::cuda {
namespace {

__global__ void multiply(const Rows s, const float* taps, float* rows) {
  const int64_t row = blockIdx.y, m = s.size / 2;
  const float2* h = reinterpret_cast<const float2*>(taps + row % s.channels * s.size);
  float2* x = reinterpret_cast<float2*>(rows + row * s.size);
  const float scale = 0.125f / static_cast<float>(m);
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k <= m / 2;
       k += int64_t{gridDim.x} * blockDim.x) {
    const Place at(k, m);
    Product(Halves(x, at), Halves(h, at), at, scale).store(x, at);
  }
}

template <class T>
bool convolve(Stream& stream, Rows s, In u, In kernel, Opt D, Out y) {
  const cudaStream_t on = stream.handle;
  Fft& fft = *stream.fft;
  const Fft::Plan &of_taps = fft.plan(s.size / 2, s.channels), &of_rows = fft.plan(s.size / 2, s.count());
  if (!of_taps.usable || !of_rows.usable) return false;
  const int64_t floats = (s.count() + s.channels) * s.size;
  const Scratch scratch(stream, floats * static_cast<int64_t>(sizeof(float)) +
                                    std::max(of_taps.workspace, of_rows.workspace));
  if (!scratch.floats()) return true;  // the queue reports it
  float *taps = scratch.floats(), *rows = taps + s.channels * s.size;
  void* work = taps + floats;
  float2 *tap_numbers = reinterpret_cast<float2*>(taps), *numbers = reinterpret_cast<float2*>(rows);

  check_rows<<<1, 256, 0, on>>>(s);
  const RowGrids grids(s);
  for (s.first = 0; s.first < s.d; s.first += s.channels) {
    take_taps<<<dim3(grids.along, unsigned_of(s.channels)), 256, 0, on>>>(s, kernel.data<float>(),
                                                                         kernel.stride(), taps);
    if (!fft.run(on, of_taps, Fft::forward, tap_numbers, work)) return false;
    for (s.sequence = 0; s.sequence < s.sequences.count; s.sequence += s.together) {
      take_rows<false><<<grids.tiles, grids.tile, 0, on>>>(s, u.data<T>(), u.stride(), rows);
      if (!fft.run(on, of_rows, Fft::forward, numbers, work)) return false;
      multiply<<<dim3(grids.along, unsigned_of(s.count())), 256, 0, on>>>(s, taps, rows);
      if (!fft.run(on, of_rows, Fft::back, numbers, work)) return false;
      give_rows<false><<<grids.tiles, grids.tile, 0, on>>>(
          s, rows, u.data<T>(), u.stride(), D ? D.data<float>() : nullptr, y.data<T>(), y.stride());
    }
  }
  return true;
}

}  // namespace

void fft_conv(Stream& stream, In u, In kernel, Opt D, In offsets, Out y) {
  const int64_t t = u.size(0), d = u.size(1);
  if (t == 0 || d == 0 || offsets.size(0) == 1) return;
  const bool found = stream.fft->find();
  bool done = false;
  if (found) {
    const Rows rows = rows_of(stream, offsets, t, d, kernel.size(1), 1);
    with_float(u.dtype(),
               [&](auto type) { done = convolve<decltype(type)>(stream, rows, u, kernel, D, y); });
  }
  if (!done) report_missing(stream, found);
}
KERNEL(fft_conv)

}  // namespace ss::cuda
