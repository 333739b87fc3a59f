// u = silu(conv(x)), y = u W^T: for many tokens of halves one kernel on Hopper (device/conv_matmul.cuh),
// with a small one before it for the starts of sequences; else the ops it stands for, in turn.
#include "card.h"
#include "device/conv_matmul.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "sequences.h"

namespace ss::cuda {

void causal_conv1d(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y);
void convolve_starts(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                     Out u);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

#ifdef SS_HOPPER  // built with machine code of 9.0a
namespace {

using AnyPlan = ConvMatmulPlan<192>;

// Whether tiles of so many tokens leave few multiprocessors without one.
bool fills_card(int64_t tokens) {
  const int64_t tiles = (tokens + AnyPlan::kTokens - 1) / AnyPlan::kTokens, all = multiprocessors(),
                waves = (tiles + all - 1) / all;
  return 4 * tiles >= 3 * waves * all;
}

template <class T, int N>
void launch_tiles(Stream& stream, const ConvMatmul<T>& s) {
  using P = ConvMatmulPlan<N>;
  const auto kernel = convolve_and_multiply<T, N>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  const int64_t tiles = (s.sequences.tokens + P::kTokens - 1) / P::kTokens;
  launch(stream.handle, kernel, {static_cast<unsigned>(tiles), unsigned{P::kThreads}, P::kBytes}, s);
}

// False where this kernel does not fit.
template <class T>
bool convolve_and_multiply_tiles(Stream& stream, In x, In taps, Opt bias, In offsets, Opt slots,
                                 OptInOut state, In weight, Out y, Out u) {
  const int64_t t = x.size(0), d = x.size(1), n = weight.size(0);
  const bool sizes = taps.size(1) == AnyPlan::kBack + 1 && d % AnyPlan::kChannels == 0 && d > 0 &&
                     n > 0 && n <= 192 && n % 2 == 0;
  const bool aligned = packs<T>(x, 8) && packs<T>(weight, 8) && packs<T>(u, 4) && packs<T>(y, 2) &&
                       packs<float>(taps, 4) && (!bias || packs<float>(bias, 4));
  if (!sizes || !aligned || weight.dtype() != x.dtype() || !is_hopper() || !fills_card(t)) return false;
  convolve_starts(stream, x, taps, bias, offsets, slots, state, u);
  ConvMatmul<T> s{};
  s.x = x.data<T>(), s.x_stride = x.stride();
  s.u = u.data<T>(), s.u_stride = u.stride();
  s.y = y.data<T>(), s.y_stride = y.stride();
  s.taps = taps.data<float>(), s.taps_stride = taps.stride();
  if (bias) s.bias = bias.data<float>();
  s.w = weight.data<T>(), s.w_stride = weight.stride();
  s.sequences = sequences(stream, offsets, slots, state, t);
  s.steps = static_cast<int>(d / AnyPlan::kChannels), s.n = static_cast<int>(n);
  if (n <= 80)
    launch_tiles<T, 80>(stream, s);
  else if (n <= 96)
    launch_tiles<T, 96>(stream, s);
  else if (n <= 128)
    launch_tiles<T, 128>(stream, s);
  else if (n <= 160)
    launch_tiles<T, 160>(stream, s);
  else
    launch_tiles<T, 192>(stream, s);
  return true;
}

}  // namespace
#endif

// [t, d], [d, w], [d]?, [s + 1], [s]?, [p, d, w - 1]?, [n, d] -> [t, n], [t, d]
void conv_matmul(Stream& s, In x, In taps, Opt bias, In offsets, Opt slots, OptInOut state, In weight,
                 Out y, Out u) {
#ifdef SS_HOPPER
  bool done = false;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      done = convolve_and_multiply_tiles<T>(s, x, taps, bias, offsets, slots, state, weight, y, u);
  });
  if (done) return;
#endif
  causal_conv1d(s, x, taps, bias, offsets, slots, state, true, u);
  matmul(s, In{u.view}, weight, Opt{}, y);
}
KERNEL(conv_matmul)

}  // namespace ss::cuda
