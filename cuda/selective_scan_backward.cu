// The gradients of selective_scan over sequences that start from zero; the formulas stand in
// native/cpu/selective_scan_backward.cc. Sequences are cut into pieces, so that few of them fill the
// card too. Three passes: what each piece adds to h and, from behind, to dh, leaving h after every
// tile of 8 tokens (t d n exponentials); those joined along a sequence; and the pieces walked back, tile
// by tile (2 t d n exponentials). Mapping, bytes and times: docs/kernels/selective_scan_backward.md.
#include <algorithm>

#include "card.h"
#include "device/scan_backward_walk.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sums {
  Out dA, dB, dC, dD, dbias;
};

// Tokens of a piece, as a shift: few long pieces, but so many that multiprocessors end together. A block
// that has one to itself takes two thirds of the time that two take; a piece costs its ends too.
template <class W>
int piece_shift(int64_t tokens, int64_t blocks) {
  constexpr int kLeast = 6, kMost = 9;
  constexpr double kEnds = 16;  // in tokens
  int best = kLeast;
  double least = 0;
  for (int shift = kLeast; shift <= kMost; shift++) {
    const int64_t each = ceil_div(ceil_div(tokens, int64_t{1} << shift) * blocks, multiprocessors());
    const double time = (static_cast<double>(each / W::kBlocks) + (each % W::kBlocks ? 0.65 : 0.0)) * ((1 << shift) + kEnds);
    if (shift == kLeast || time < least) best = shift, least = time;
  }
  return best;
}

// dB and dC: the shares of all blocks of a group, in order.
template <class T>
__global__ void add_shares(const float* shares, int64_t blocks, int64_t t, int64_t groups, int64_t n,
                           T* dB, int64_t dB_stride, T* dC, int64_t dC_stride) {
  const int64_t row = groups * 2 * n, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < t * row; i += step) {
    const int64_t token = i / row, at = i % row, column = at / (2 * n) * n + at % n;
    T* to = at / n % 2 ? dC : dB;
    if (!to) continue;
    float total = 0;
    for (int64_t block = 0; block < blocks; block++) total += shares[block * t * row + i];
    from_float(to[token * (at / n % 2 ? dC_stride : dB_stride) + column], total);
  }
}

template <class W>
void launch_walk(Stream& stream, ScanBackward<typename W::T> s, const Sums& out) {
  using T = typename W::T;
  s.group_warps = ceil_div(s.group_channels, W::kWidth);
  s.group_blocks = static_cast<unsigned>(ceil_div(s.group_warps, W::kWarps));
  s.blocks = static_cast<unsigned>(s.groups * s.group_blocks);
  const int64_t tokens = s.sequences.tokens, warps = s.groups * s.group_warps;
  s.shift = piece_shift<W>(tokens, s.blocks);
  s.pieces = s.sequences.pieces(s.shift);
  const int64_t row = s.d * s.n, tiles = int64_t{1} << (s.shift - kTileShift);
  const bool constant = s.B_constant && s.C_constant;
  const int64_t shares = constant ? 0 : s.group_blocks * tokens * s.groups * 2 * s.n;
  const int64_t inner = s.pieces * (tiles - 1) * warps * W::kHeld;
  const int64_t floats =
      inner + shares + s.pieces * ((s.C_constant ? 3 : 2) * row + (tiles + 2) * s.d);
  const Scratch scratch(stream, floats * static_cast<int64_t>(sizeof(float)));
  if (!scratch.floats()) return;
  s.inner = scratch.floats();  // first: they are read by fours
  s.shares = s.inner + inner;
  s.start = s.shares + shares, s.end = s.start + s.pieces * row;
  s.time = s.end + s.pieces * row, s.dD = s.time + s.pieces * tiles * s.d;
  s.dbias = s.dD + s.pieces * s.d, s.constant_C = s.dbias + s.pieces * s.d;
  cudaFuncSetAttribute(scan_edges<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, W::kEdgeBytes);
  cudaFuncSetAttribute(scan_back<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, W::kBytes);
  const unsigned items = static_cast<unsigned>(s.pieces * s.blocks);
  scan_edges<W><<<items, W::kThreads, W::kEdgeBytes, stream.handle>>>(s);
  const dim3 grid(static_cast<unsigned>(ceil_div(row, 128)),
                  static_cast<unsigned>(std::min<int64_t>(s.sequences.count, 32)), 2);
  join_edges<T><<<grid, 128, 0, stream.handle>>>(s);
  scan_back<W><<<items, W::kThreads, W::kBytes, stream.handle>>>(s);
  if (!constant) {
    const int64_t blocks = std::min<int64_t>(ceil_div(tokens * s.groups * 2 * s.n, 256), 8192);
    add_shares<T><<<static_cast<unsigned>(blocks), 256, 0, stream.handle>>>(
        s.shares, s.group_blocks, tokens, s.groups, s.n, s.B_constant ? nullptr : out.dB.data<T>(),
        out.dB.stride(), s.C_constant ? nullptr : out.dC.data<T>(), out.dC.stride());
  }
  add_parts(stream, s.start, s.pieces, row, row, out.dA.data<float>());
  if (s.B_constant) add_parts(stream, s.end, s.pieces, row, row, out.dB.data<float>());
  if (s.C_constant) add_parts(stream, s.constant_C, s.pieces, row, row, out.dC.data<float>());
  if (s.D) add_parts(stream, s.dD, s.pieces, s.d, s.d, out.dD.data<float>());
  if (s.bias) add_parts(stream, s.dbias, s.pieces, s.d, s.d, out.dbias.data<float>());
}

template <class T>
void walk(Stream& stream, const ScanBackward<T>& s, const Sums& out) {
  const bool any = s.B_constant || s.C_constant;
  if (s.n <= 16)
    return any ? launch_walk<Walk<T, 2, 4, true>>(stream, s, out)
               : launch_walk<Walk<T, 2, 4, false>>(stream, s, out);
  if (s.n <= 64) return launch_walk<Walk<T, 8, 2, true>>(stream, s, out);
  launch_walk<Walk<T, 32, 2, true>>(stream, s, out);
}

// Whether fours of neighbours in rows of this can be one access.
template <class T>
bool by_fours(const T* data, int64_t stride) {
  return !data || (stride % 4 == 0 && reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0);
}

template <class P>
void zero(Stream& s, P tensor) {
  if (!tensor.view || tensor.view->rank == 0) return;
  const View& v = *tensor.view;
  int64_t row = size_of(v.dtype);
  for (int i = 1; i < v.rank; i++) row *= v.shape[i];
  if (row > 0 && v.shape[0] > 0)
    cudaMemset2DAsync(v.data, static_cast<size_t>(tensor.stride() * size_of(v.dtype)), 0,
                      static_cast<size_t>(row), static_cast<size_t>(v.shape[0]), s.handle);
}

}  // namespace

void selective_scan_backward(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z,
                             Opt delta_bias, In offsets, In dy, OptInOut y, bool delta_softplus, Out du,
                             Out ddelta, Out dA, Out dB, Out dC, Out dD, Out dz, Out ddelta_bias) {
  const int64_t t = u.size(0), count = offsets.size(0) - 1;
  if (t == 0 || u.size(1) == 0 || A.size(1) == 0 || count == 0) {
    for (Out out : {du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, Out{y.view}}) zero(stream, out);
    return;
  }
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  with_float(u.dtype(), [&](auto type) {
    using T = decltype(type);
    ScanBackward<T> s{};
    s.u = u.data<T>(), s.u_stride = u.stride();
    s.delta = delta.data<T>(), s.delta_stride = delta.stride();
    s.dy = dy.data<T>(), s.dy_stride = dy.stride();
    s.du = du.data<T>(), s.du_stride = du.stride();
    s.ddelta = ddelta.data<T>(), s.ddelta_stride = ddelta.stride();
    if (z) s.z = z.data<T>(), s.z_stride = z.stride();
    if (z) s.dz = dz.data<T>(), s.dz_stride = dz.stride();
    if (y) s.y = y.data<T>(), s.y_stride = y.stride();
    s.A = A.data<float>(), s.A_stride = A.stride();
    if (D) s.D = D.data<float>();
    if (delta_bias) s.bias = delta_bias.data<float>();
    s.B = B.view->data, s.B_stride = B.stride(), s.B_constant = B.rank() == 2;
    s.C = C.view->data, s.C_stride = C.stride(), s.C_constant = C.rank() == 2;
    s.softplus = delta_softplus;
    s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t);
    s.d = u.size(1), s.n = A.size(1), s.groups = groups, s.group_channels = s.d / groups;
    s.wide = s.group_channels % 4 == 0 && by_fours(s.u, s.u_stride) &&
             by_fours(s.delta, s.delta_stride) && by_fours(s.dy, s.dy_stride) &&
             by_fours(s.z, s.z_stride) && by_fours(s.du, s.du_stride) &&
             by_fours(s.ddelta, s.ddelta_stride) && by_fours(s.dz, s.dz_stride) &&
             by_fours(s.y, s.y_stride);
    s.wide_states = s.n % 4 == 0 && by_fours(static_cast<const T*>(s.B), s.B_stride) &&
                    by_fours(static_cast<const T*>(s.C), s.C_stride);
    walk(stream, s, {dA, dB, dC, dD, ddelta_bias});
  });
}
KERNEL(selective_scan_backward)

}  // namespace ss::cuda
