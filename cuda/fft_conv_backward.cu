// The gradients of fft_conv, as convolutions too (fft_rows.cuh): with r(k) = dy(l - 1 - k),
//   du(l - 1 - k) = (kernel * r)(k) + D dy,   dkernel(l - 1 - k) = sum over sequences of (u * r)(k)
// u and r are transformed; one kernel multiplies both products, du's in place and dkernel's onto a sum
// over the sequences, in their order, which is transformed back once. dD is dkernel(0).
#include "fft_rows.cuh"

namespace ss::cuda {
namespace {

// A thread takes one place of a channel through all sequences of this part.
__global__ void multiply_back(const Rows s, const float* taps, const float* inputs, float* rows,
                              float* sums) {
  const int64_t c = blockIdx.y, m = s.size / 2;
  const float scale = 0.125f / static_cast<float>(m);
  const float2* h = reinterpret_cast<const float2*>(taps + c * s.size);
  float2* sum = reinterpret_cast<float2*>(sums + c * s.size);
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k <= m / 2;
       k += int64_t{gridDim.x} * blockDim.x) {
    const Place at(k, m);
    const Halves of_taps(h, at);
    float2 first{}, second{};
    if (s.sequence > 0) first = sum[at.k], second = sum[at.other];
    for (int64_t i = 0; i < s.together; i++) {
      const int64_t row = (i * s.channels + c) * s.size;
      float2* r = reinterpret_cast<float2*>(rows + row);
      const Halves of_rows(r, at);
      const Product p(Halves(reinterpret_cast<const float2*>(inputs + row), at), of_rows, at, scale);
      first.x += p.first.x, first.y += p.first.y;
      second.x += p.second.x, second.y += p.second.y;
      Product(of_rows, of_taps, at, scale).store(r, at);
    }
    sum[at.k] = first;
    if (at.other != at.k) sum[at.other] = second;
  }
}

__global__ void give_taps(const Rows s, const float* sums, float* dkernel, float* dD) {
  const int64_t c = s.first + blockIdx.y;
  if (c >= s.d) return;
  for (int64_t k = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; k < s.l;
       k += int64_t{gridDim.x} * blockDim.x) {
    const float tap = sums[blockIdx.y * s.size + s.l - 1 - k];
    dkernel[c * s.l + k] = tap;
    if (k == 0 && dD) dD[c] = tap;
  }
}

template <class T>
bool convolve_back(Stream& stream, Rows s, In u, In kernel, Opt D, In dy, Out du, Out dkernel, Out dD) {
  const cudaStream_t on = stream.handle;
  Fft& fft = *stream.fft;
  const Fft::Plan &of_taps = fft.plan(s.size / 2, s.channels), &of_rows = fft.plan(s.size / 2, s.count());
  if (!of_taps.usable || !of_rows.usable) return false;
  const int64_t floats = 2 * (s.count() + s.channels) * s.size;
  const Scratch scratch(stream, floats * static_cast<int64_t>(sizeof(float)) +
                                    std::max(of_taps.workspace, of_rows.workspace));
  if (!scratch.floats()) return true;  // the queue reports it
  float *taps = scratch.floats(), *sums = taps + s.channels * s.size;
  float *inputs = sums + s.channels * s.size, *rows = inputs + s.count() * s.size;
  void* work = taps + floats;
  const auto transform = [&](const Fft::Plan& plan, Fft::Way way, float* numbers) {
    return fft.run(on, plan, way, reinterpret_cast<float2*>(numbers), work);
  };

  check_rows<<<1, 256, 0, on>>>(s);
  const RowGrids grids(s);
  const dim3 of_channels(grids.along, unsigned_of(s.channels));
  for (s.first = 0; s.first < s.d; s.first += s.channels) {
    take_taps<<<of_channels, 256, 0, on>>>(s, kernel.data<float>(), kernel.stride(), taps);
    if (!transform(of_taps, Fft::forward, taps)) return false;
    for (s.sequence = 0; s.sequence < s.sequences.count; s.sequence += s.together) {
      take_rows<false><<<grids.tiles, grids.tile, 0, on>>>(s, u.data<T>(), u.stride(), inputs);
      take_rows<true><<<grids.tiles, grids.tile, 0, on>>>(s, dy.data<T>(), dy.stride(), rows);
      if (!transform(of_rows, Fft::forward, inputs) || !transform(of_rows, Fft::forward, rows))
        return false;
      multiply_back<<<of_channels, 256, 0, on>>>(s, taps, inputs, rows, sums);
      if (!transform(of_rows, Fft::back, rows)) return false;
      give_rows<true><<<grids.tiles, grids.tile, 0, on>>>(
          s, rows, dy.data<T>(), dy.stride(), D ? D.data<float>() : nullptr, du.data<T>(), du.stride());
    }
    if (!transform(of_taps, Fft::back, sums)) return false;
    give_taps<<<of_channels, 256, 0, on>>>(s, sums, dkernel.data<float>(),
                                           D ? dD.data<float>() : nullptr);
  }
  return true;
}

}  // namespace

void fft_conv_backward(Stream& stream, In u, In kernel, Opt D, In offsets, In dy, Out du, Out dkernel,
                       Out dD) {
  const int64_t t = u.size(0), d = u.size(1), l = kernel.size(1);
  if (t == 0 || d == 0 || offsets.size(0) == 1) {
    const auto bytes = static_cast<size_t>(d) * sizeof(float);
    if (d * l > 0) cudaMemsetAsync(dkernel.data<float>(), 0, bytes * static_cast<size_t>(l), stream.handle);
    if (D && d > 0) cudaMemsetAsync(dD.data<float>(), 0, bytes, stream.handle);
    return;
  }
  const bool found = stream.fft->find();
  bool done = false;
  if (found) {
    const Rows rows = rows_of(stream, offsets, t, d, l, 2);
    with_float(u.dtype(), [&](auto type) {
      done = convolve_back<decltype(type)>(stream, rows, u, kernel, D, dy, du, dkernel, dD);
    });
  }
  if (!done) report_missing(stream, found);
}
KERNEL(fft_conv_backward)

}  // namespace ss::cuda
