// The gradients of selective_scan over sequences that start from zero; the formulas stand in
// native/cpu/selective_scan_backward.cc. Sequences are cut into pieces of kPiece tokens, so that
// short batches fill the card too. Three passes: what each piece adds to h and, from behind, to dh
// (t d n exponentials); those joined along a sequence; and the pieces walked back
// (device/scan_walk.cuh; 3 t d n exponentials). Beside its inputs, twice, and its outputs, once,
// 24 d n bytes a piece move, and 8 n bytes for dB and dC a token and block of channels.
#include <algorithm>

#include "card.h"
#include "device/scan_walk.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kShift = 6;  // a piece has 64 tokens

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sums {
  Out dA, dB, dC, dD, dbias;
};

template <class W>
void launch_walk(Stream& stream, ScanBackward<typename W::T> s, const Sums& out) {
  using T = typename W::T;
  s.group_blocks = static_cast<unsigned>(ceil_div(s.group_channels, W::kWidth));
  s.blocks = static_cast<unsigned>(s.groups * s.group_blocks);
  const int64_t row = s.d * s.n, tokens = s.sequences.tokens, items = s.pieces * s.blocks;
  const int64_t resident = std::min<int64_t>(items, W::kBlocks * multiprocessors());
  const int64_t of_tiles = (int64_t{1} << kShift) / W::kSteps * W::kTileFloats;
  const bool constant = s.B_constant && s.C_constant;
  const int64_t shares = constant ? 0 : s.group_blocks * tokens * s.groups * 2 * s.n;
  const int64_t floats = s.pieces * (2 * row + 3 * s.d) + resident * of_tiles + shares +
                         (s.C_constant ? s.pieces * row : 0);
  const Scratch scratch(stream, floats * static_cast<int64_t>(sizeof(float)));
  if (!scratch.floats()) return;
  s.tiles = scratch.floats();  // first: they are read by fours
  s.shares = s.tiles + resident * of_tiles;
  s.start = s.shares + shares, s.end = s.start + s.pieces * row;
  s.time = s.end + s.pieces * row, s.dD = s.time + s.pieces * s.d, s.dbias = s.dD + s.pieces * s.d;
  s.constant_C = s.dbias + s.pieces * s.d;
  if (W::kEdgeBytes > 48 * 1024)
    cudaFuncSetAttribute(scan_edges<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, W::kEdgeBytes);
  cudaFuncSetAttribute(scan_back<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, W::kBytes);
  scan_edges<W><<<static_cast<unsigned>(items), W::kThreads, W::kEdgeBytes, stream.handle>>>(s);
  const dim3 grid(static_cast<unsigned>(ceil_div(row, 128)), static_cast<unsigned>(s.sequences.count), 2);
  join_edges<T><<<grid, 128, 0, stream.handle>>>(s);
  scan_back<W><<<static_cast<unsigned>(resident), W::kThreads, W::kBytes, stream.handle>>>(s);
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
  if (s.n <= 8 && !any) return launch_walk<Walk<T, 4, 2, 2, 8, false>>(stream, s, out);
  if (s.n <= 16)
    return any ? launch_walk<Walk<T, 4, 4, 2, 8, true>>(stream, s, out)
               : launch_walk<Walk<T, 4, 4, 2, 8, false>>(stream, s, out);
  if (s.n <= 64)
    return any ? launch_walk<Walk<T, 4, 16, 4, 8, true>>(stream, s, out)
               : launch_walk<Walk<T, 4, 16, 4, 8, false>>(stream, s, out);
  launch_walk<Walk<T, 8, 32, 2, 8, true>>(stream, s, out);
}

template <class P>
void zero(Stream& s, P tensor) {
  const View& v = *tensor.view;
  int64_t items = 1;
  for (int i = 0; i < v.rank; i++) items *= v.shape[i];
  if (items > 0) cudaMemsetAsync(v.data, 0, static_cast<size_t>(items * size_of(v.dtype)), s.handle);
}

}  // namespace

void selective_scan_backward(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z,
                             Opt delta_bias, In offsets, In dy, bool delta_softplus, Out du,
                             Out ddelta, Out dA, Out dB, Out dC, Out dD, Out dz, Out ddelta_bias) {
  const int64_t t = u.size(0), count = offsets.size(0) - 1;
  if (t == 0 || u.size(1) == 0 || A.size(1) == 0 || count == 0) {
    for (Out out : {du, ddelta, dA, dB, dC, dD, dz, ddelta_bias}) zero(stream, out);
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
    s.A = A.data<float>(), s.A_stride = A.stride();
    if (D) s.D = D.data<float>();
    if (delta_bias) s.bias = delta_bias.data<float>();
    s.B = B.view->data, s.B_stride = B.stride(), s.B_constant = B.rank() == 2;
    s.C = C.view->data, s.C_stride = C.stride(), s.C_constant = C.rank() == 2;
    s.softplus = delta_softplus;
    s.sequences = sequences(stream, offsets, Opt{nullptr}, OptInOut{nullptr}, t);
    s.shift = kShift, s.pieces = s.sequences.pieces(kShift);
    s.d = u.size(1), s.n = A.size(1), s.groups = groups, s.group_channels = s.d / groups;
    walk(stream, s, {dA, dB, dC, dD, ddelta_bias});
  });
}
KERNEL(selective_scan_backward)

}  // namespace ss::cuda
