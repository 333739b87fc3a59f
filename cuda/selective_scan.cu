// Per sequence and channel c, with group(c) = c / (d / g):
//   dt = softplus?(delta + delta_bias)
//   h  = exp(dt A) h + dt B u                    // [n]
//   y  = (sum over n of h C + D u) * silu(z)?
// A block takes some channels of a sequence through all of its tokens: device/scan.cuh. u, delta, z
// and y cross memory once; states stay in registers.
#include "device/scan_step.cuh"
#include "dispatch.cuh"
#include "sequences.h"

namespace ss::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Grids count blocks in 31 bits.
template <class K, class T>
void launch_blocks(Stream& stream, K kernel, int threads, int bytes, const Scan<T>& s) {
  const int64_t blocks = s.blocks * s.sequences.count;
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream.handle>>>(s);
}

template <class T>
bool aligned(const void* p, int64_t stride, int items) {
  return reinterpret_cast<uintptr_t>(p) % (items * sizeof(T)) == 0 && stride % items == 0;
}

template <class P>
bool suits(const Scan<typename P::T>& s) {
  using T = typename P::T;
  constexpr int item = P::kItem, piece = P::kPiece;
  return !s.B_constant && !s.C_constant && s.group_channels % item == 0 && s.n % piece == 0 &&
         aligned<T>(s.u, s.u_stride, item) && aligned<T>(s.delta, s.delta_stride, item) &&
         aligned<T>(s.y, s.y_stride, item) && (!s.z || aligned<T>(s.z, s.z_stride, item)) &&
         aligned<T>(s.B, s.B_stride, piece) && aligned<T>(s.C, s.C_stride, piece);
}

template <class P, int MinBlocks = 4>
bool launch_scan(Stream& stream, Scan<typename P::T> s) {
  if (P::kFast && !suits<P>(s)) return false;
  s.group_blocks = ceil_div(s.group_channels, P::kWidth);
  s.blocks = s.d / s.group_channels * s.group_blocks;
  launch_blocks(stream, scan_sequences<P, MinBlocks>, P::kThreads, P::kBytes, s);
  return true;
}

template <class T>
bool scan_fast(Stream& stream, const Scan<T>& s) {
  if (s.n <= 8) return launch_scan<Plan<T, 4, 2, 1, 32, true>>(stream, s);
  if (s.n <= 16) return launch_scan<Plan<T, 4, 4, 1, 32, true>>(stream, s);
  if (s.n <= 32) return launch_scan<Plan<T, 8, 4, 1, 32, true>>(stream, s);
  if (s.n <= 64) return launch_scan<Plan<T, 8, 8, 1, 32, true>>(stream, s);
  if (s.n <= 128) return launch_scan<Plan<T, 8, 16, 1, 16, true>>(stream, s);
  return launch_scan<Plan<T, 16, 16, 1, 16, true>, 2>(stream, s);
}

template <class T>
void scan_any(Stream& stream, const Scan<T>& s) {
  if (scan_fast(stream, s)) return;
  if (s.n <= 16)
    launch_scan<Plan<T, 4, 4, 1, 32, false>>(stream, s);
  else if (s.n <= 64)
    launch_scan<Plan<T, 8, 8, 1, 32, false>, 2>(stream, s);
  else
    launch_scan<Plan<T, 16, 16, 1, 16, false>, 2>(stream, s);
}

template <class T>
void step_any(Stream& stream, Scan<T> s) {
  const auto fours = [](const void* p, int64_t stride, bool f32) {
    return f32 ? aligned<float>(p, stride, 4) : aligned<T>(p, stride, 4);
  };
  s.wide = s.n % 4 == 0 && fours(s.A, s.A_stride, true) && fours(s.state, s.state_stride, true) &&
           fours(s.B, s.B_stride, s.B_constant) && fours(s.C, s.C_stride, s.C_constant);
  const auto launch = [&](auto kernel, int lanes) {
    s.blocks = ceil_div(s.d, kStepThreads / lanes);
    launch_blocks(stream, kernel, kStepThreads, 0, s);
  };
  if (s.n <= 8)
    launch(scan_tokens<T, 2, 1>, 2);
  else if (s.n <= 16)
    launch(scan_tokens<T, 4, 1>, 4);
  else if (s.n <= 64)
    launch(scan_tokens<T, 16, 1>, 16);
  else
    launch(scan_tokens<T, 32, 2>, 32);
}

template <class T>
Scan<T> describe(const Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                 In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y) {
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  Scan<T> s{};
  s.u = u.data<T>(), s.u_stride = u.stride();
  s.delta = delta.data<T>(), s.delta_stride = delta.stride();
  if (z) s.z = z.data<T>(), s.z_stride = z.stride();
  s.y = y.data<T>(), s.y_stride = y.stride();
  s.A = A.data<float>(), s.A_stride = A.stride();
  if (D) s.D = D.data<float>();
  if (delta_bias) s.delta_bias = delta_bias.data<float>();
  s.B = B.view->data, s.B_stride = B.stride(), s.B_constant = B.rank() == 2;
  s.C = C.view->data, s.C_stride = C.stride(), s.C_constant = C.rank() == 2;
  if (state) s.state = state.data<float>(), s.state_stride = state.stride();
  s.sequences = sequences(stream, offsets, slots, state, u.size(0));
  s.d = u.size(1), s.n = A.size(1), s.group_channels = s.d / groups;
  s.delta_softplus = delta_softplus;
  return s;
}

}  // namespace

void selective_scan(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y) {
  const int64_t t = u.size(0), count = offsets.size(0) - 1;
  if (t == 0 || u.size(1) == 0 || count == 0) return;
  with_float(u.dtype(), [&](auto type) {
    using T = decltype(type);
    const Scan<T> s = describe<T>(stream, u, delta, A, B, C, D, z, delta_bias, offsets, slots, state,
                                  delta_softplus, y);
    count == t ? step_any(stream, s) : scan_any(stream, s);
  });
}
KERNEL(selective_scan)

}  // namespace ss::cuda
