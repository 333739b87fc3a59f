// The scan's backward, first and second pass: where pieces of sequences begin and end.
#pragma once
#include "scan_backward.cuh"

namespace ss::cuda {

template <class W>
using Held = float[W::kOwn][W::kStates];
template <class W>
using Some = float[W::kPasses][W::kVector];  // of a tile, by the threads that bring it

// A for powers of two.
template <class W>
__device__ void load_A(const W& w, const ScanBackward<typename W::T>& s, Held<W>& A) {
  w.load(s.A, s.A_stride, s.n, A);
#pragma unroll
  for (int k = 0; k < W::kOwn; k++)
#pragma unroll
    for (int i = 0; i < W::kStates; i++) A[k][i] *= kLog2e;
}
template <class W>
__device__ void load_constant(const W& w, const void* from, bool constant, int64_t stride, int64_t n,
                              Held<W>& to) {
  if constexpr (W::kAny)
    if (constant) w.load(static_cast<const float*>(from), stride, n, to);
}
// D or the bias of the warp's channels.
template <class W>
__device__ void place_channels(const W& w, const float* from, float* to) {
  for (int c = w.lane; c < W::kWidth; c += 32) to[c] = from && c < w.width ? from[w.first + c] : 0.0f;
}

__device__ inline int tile_steps(int64_t t, int64_t end) {
  return end - t < kTile ? static_cast<int>(end - t) : kTile;
}

// The thread's part of h after the first tile of a piece, [quad][lane]; those after others follow.
template <class W>
__device__ float4* inner_states(const W& w, const ScanBackward<typename W::T>& s, int64_t piece) {
  const int64_t at = piece * (s.tiles() - 1) * (s.groups * s.group_warps) + w.number;
  return reinterpret_cast<float4*>(s.inner + at * W::kHeld) + w.lane;
}
template <class W>
__device__ int64_t inner_step(const ScanBackward<typename W::T>& s) {
  return s.groups * s.group_warps * (W::kHeld / 4);
}

// Brings the thread's part of a tile to where the warp reads it, [step][channel]: Δ, which is 0 behind the last of
// the steps, Δ u and, with Gated, the gated dy; `each(p, v, u, g)` may take more of it along. What the thread keeps
// are the slopes of softplus and, times dy, of silu; whoever needs none of them pays for none.
template <class W, bool Gated, class Each>
__device__ __forceinline__ void bring_tile(const W& w, const ScanBackward<typename W::T>& s,
                                           const Share<W>& raw, const float* bias_of, int steps, float* dt_of,
                                           float* dtu_of, float* g_of, Some<W>& slope, Some<W>& gate,
                                           Each each) {
  const int c = Share<W>::channel(w);
  float bias[W::kVector];
  load_floats<W::kVector>(bias_of + c, bias);
  // Loops of their own, so that a thread waits for all answers of the special-function unit at once.
  Some<W> dt, g;
#pragma unroll
  for (int p = 0; p < W::kPasses; p++)
#pragma unroll
    for (int v = 0; v < W::kVector; v++) {
      dt[p][v] = raw.delta[p][v] + bias[v], g[p][v] = raw.dy[p][v];
      slope[p][v] = 1.0f, gate[p][v] = 0.0f;
    }
  if (s.softplus) {
#pragma unroll
    for (int p = 0; p < W::kPasses; p++)
#pragma unroll
      for (int v = 0; v < W::kVector; v++) dt[p][v] = softplus_slope(dt[p][v], slope[p][v]);
  }
  if (Gated && s.z) {
#pragma unroll
    for (int p = 0; p < W::kPasses; p++)
#pragma unroll
      for (int v = 0; v < W::kVector; v++) {
        const float z = raw.z[p][v], open = reciprocal_approx(1.0f + exp2_approx(z * -kLog2e));
        gate[p][v] = g[p][v] * open * fmaf(z, 1.0f - open, 1.0f);
        g[p][v] *= z * open;
      }
  }
#pragma unroll
  for (int p = 0; p < W::kPasses; p++) {
    const int row = Share<W>::step(w, p), at = row * W::kWidth + c;
    if (row >= kTile) break;
    float dtu[W::kVector];
#pragma unroll
    for (int v = 0; v < W::kVector; v++) {
      const float u = raw.u[p][v];
      if (row >= steps) dt[p][v] = 0.0f;
      dtu[v] = dt[p][v] * u;
      each(p, v, u, g[p][v]);
    }
    store_floats<W::kVector>(dt[p], dt_of + at);
    store_floats<W::kVector>(dtu, dtu_of + at);
    if (Gated) store_floats<W::kVector>(g[p], g_of + at);
  }
}

// What each piece adds to h and, from behind, to dh; its time; and h after each of its tiles. With the
// decay P_t from the piece's start through token t, what comes back to the start is the sum of
// P_t C_t g_t: one way does for both. A sequence of one piece needs no more than its h.
template <class W, bool Lone>
__device__ __forceinline__ void walk_edge(const W& w, const ScanBackward<typename W::T>& s, int64_t number,
                                          int64_t begin, int64_t end, float* memory) {
  float *dt_of = memory, *dtu_of = dt_of + W::kTokens, *g_of = dtu_of + W::kTokens;
  float *B_of = g_of + W::kTokens, *C_of = B_of + W::kCoefficients / 2, *bias_of = B_of + W::kCoefficients;
  Held<W> A, B, C, h{}, dh{}, decay;
  load_A(w, s, A);
  load_constant(w, s.B, s.B_constant, s.B_stride, s.n, B);
  load_constant(w, s.C, s.C_constant, s.C_stride, s.n, C);
  place_channels(w, s.bias, bias_of);
#pragma unroll
  for (int k = 0; k < W::kOwn; k++)
#pragma unroll
    for (int i = 0; i < W::kStates; i++) decay[k][i] = 1.0f;
  float time[W::kOwn] = {};
  float* times = s.time + number * s.tiles() * s.d + w.first + w.own;
  const auto keep_time = [&](int64_t tile) {
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
      if (w.sub == 0 && w.own + k < w.width) times[tile * s.d + k] = time[k];
  };
  float4* inner = inner_states(w, s, number);
  const int count = static_cast<int>((end - begin + kTile - 1) >> kTileShift);
  const int needed = Lone ? count - 1 : count;  // the last tile leads nowhere
  Share<W> raw(w, s, begin);
  if (needed > 0) raw.fetch(w, s, tile_steps(begin, end));
  __syncwarp();
  for (int tile = 0; tile < needed; tile++) {
    const int64_t t = begin + tile * kTile;
    const int steps = tile_steps(t, end);
    Some<W> slope, gate;
    bring_tile<W, !Lone>(w, s, raw, bias_of, steps, dt_of, dtu_of, g_of, slope, gate,
                         [](int, int, float, float) {});
    raw.place_states(w, s, steps, B_of);
    __syncwarp();
    raw.move(s, false);
    if (tile + 1 < needed) raw.fetch(w, s, tile_steps(t + kTile, end));
#pragma unroll
    for (int step = 0; step < kTile; step++) {
      float dt[W::kOwn], dtu[W::kOwn], g[W::kOwn], b[W::kStates], c[W::kStates];
      w.take(dt_of, step, dt);
      w.take(dtu_of, step, dtu);
      w.coefficients(B_of, step, b);
      if (!Lone) w.take(g_of, step, g);
      if (!Lone) w.coefficients(C_of, step, c);
#pragma unroll
      for (int k = 0; k < W::kOwn; k++) {
        if (!Lone) time[k] += dt[k];
#pragma unroll
        for (int i = 0; i < W::kStates; i++) {
          const float a = exp2_approx(dt[k] * A[k][i]);
          h[k][i] = fmaf(a, h[k][i], dtu[k] * (W::kAny && s.B_constant ? B[k][i] : b[i]));
          if (Lone) continue;
          decay[k][i] *= a;
          dh[k][i] = fmaf(decay[k][i], g[k] * (W::kAny && s.C_constant ? C[k][i] : c[i]), dh[k][i]);
        }
      }
    }
    if (tile + 1 < count) {
#pragma unroll
      for (int k = 0; k < W::kOwn; k++)
#pragma unroll
        for (int i = 0; i < W::kStates; i += 4)
          inner[(k * W::kStates + i) / 4 * 32] =
              make_float4(h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3]);
      inner += inner_step<W>(s);
      if (!Lone) keep_time(tile);
    }
    __syncwarp();
  }
  if (Lone) return;
  keep_time(s.tiles() - 1);
  w.store(h, s.n, s.start + number * s.d * s.n);
  w.store(dh, s.n, s.end + number * s.d * s.n);
}

template <class W>
__global__ void __launch_bounds__(W::kThreads, 384 / W::kThreads)
    scan_edges(const __grid_constant__ ScanBackward<typename W::T> s) {
  extern __shared__ __align__(16) float memory[];
  s.sequences.check();
  const W w(s, blockIdx.x % s.blocks);
  const int64_t number = blockIdx.x / s.blocks;
  const auto piece = s.sequences.piece(number, s.shift);
  if (piece.begin >= piece.end || w.width == 0) return;
  float* own = memory + w.warp * W::kEdge;
  if (piece.begin <= piece.start && piece.end >= piece.stop)
    walk_edge<W, true>(w, s, number, piece.begin, piece.end, own);
  else
    walk_edge<W, false>(w, s, number, piece.begin, piece.end, own);
}

// From what pieces add to what they start from: a thread has one state, of h or of dh, of some
// sequences. Some pieces ahead are asked for together, since each by itself would be waited for.
template <class T>
__global__ void join_edges(const __grid_constant__ ScanBackward<T> s) {
  constexpr int kAhead = 8;
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, row = s.d * s.n, tiles = s.tiles();
  if (at >= row) return;
  const bool back = blockIdx.z == 1;
  float* edge = (back ? s.end : s.start) + at;
  const float* time = s.time + (tiles - 1) * s.d + at / s.n;
  for (int64_t sequence = blockIdx.y; sequence < s.sequences.count; sequence += gridDim.y) {
    const auto whole = s.sequences.whole(sequence);
    const int64_t count = (whole.stop - whole.start + (int64_t{1} << s.shift) - 1) >> s.shift;
    if (count < 2) continue;
    const int64_t first = s.sequences.first_piece(sequence, s.shift);
    const float A = s.A[at / s.n * s.A_stride + at % s.n] * kLog2e;
    float carried = 0;
    for (int64_t done = 0; done < count; done += kAhead) {
      float added[kAhead], span[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        const int64_t p = first + (back ? count - 1 - done - i : done + i);
        if (done + i < count) added[i] = edge[p * row], span[i] = time[p * tiles * s.d];
      }
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        if (done + i >= count) break;
        edge[(first + (back ? count - 1 - done - i : done + i)) * row] = carried;
        carried = fmaf(exp2_approx(A * span[i]), carried, added[i]);
      }
    }
  }
}

}  // namespace ss::cuda
