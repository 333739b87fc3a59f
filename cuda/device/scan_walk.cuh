// The kernels of the scan's backward; what they are given stands in scan_backward.cuh.
#pragma once
#include "scan_backward.cuh"

namespace ss::cuda {

template <class W>
using Held = float[W::kOwn][W::kStates];

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

__device__ inline int tile_steps(int64_t t, int64_t end, int most) {
  return end - t < most ? static_cast<int>(end - t) : most;
}

// What each piece adds to h and, from behind, to dh; and its time. With the decay P_t from the
// piece's start through token t, what comes back to the start is the sum of P_t C_t g_t: one way does
// for both. A sequence of one piece needs neither.
template <class W>
__global__ void __launch_bounds__(W::kThreads)
    scan_edges(const __grid_constant__ ScanBackward<typename W::T> s) {
  extern __shared__ __align__(16) float memory[];
  s.sequences.check();
  const W w(memory, s, blockIdx.x % s.blocks);
  const int64_t number = blockIdx.x / s.blocks, row = number * s.d * s.n;
  const auto piece = s.sequences.piece(number, s.shift);
  Held<W> A, B, C, h{}, dh{}, decay;
  const bool lone = piece.begin <= piece.start && piece.end >= piece.stop;
  if (piece.begin < piece.end && !lone) {
    load_A(w, s, A);
    load_constant(w, s.B, s.B_constant, s.B_stride, s.n, B);
    load_constant(w, s.C, s.C_constant, s.C_stride, s.n, C);
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
#pragma unroll
      for (int i = 0; i < W::kStates; i++) decay[k][i] = 1.0f;
    float time = 0;
    Share<W> raw;
    raw.template fetch<true>(w, s, piece.begin, tile_steps(piece.begin, piece.end, W::kSteps));
    for (int64_t t = piece.begin; t < piece.end; t += W::kSteps) {
      raw.template place<true>(w, s, tile_steps(t, piece.end, W::kSteps));
      __syncthreads();
      const int64_t next = t + W::kSteps;
      if (next < piece.end)
        raw.template fetch<true>(w, s, next, tile_steps(next, piece.end, W::kSteps));
      if (threadIdx.x < W::kWidth)
#pragma unroll
        for (int step = 0; step < W::kSteps; step++) time += w.dt[step * W::kWidth + threadIdx.x];
#pragma unroll 2
      for (int step = 0; step < W::kSteps; step++) {
        float dt[W::kOwn], dtu[W::kOwn], g[W::kOwn], b[W::kStates], c[W::kStates];
        w.take(w.dt, step, dt);
        w.take(w.dtu, step, dtu);
        w.take(w.g, step, g);
        w.coefficients(w.B, step, b);
        w.coefficients(w.C, step, c);
#pragma unroll
        for (int k = 0; k < W::kOwn; k++)
#pragma unroll
          for (int i = 0; i < W::kStates; i++) {
            const float a = exp2_approx(dt[k] * A[k][i]);
            h[k][i] = fmaf(a, h[k][i], dtu[k] * (W::kAny && s.B_constant ? B[k][i] : b[i]));
            decay[k][i] *= a;
            dh[k][i] = fmaf(decay[k][i], g[k] * (W::kAny && s.C_constant ? C[k][i] : c[i]), dh[k][i]);
          }
      }
      __syncthreads();
    }
    if (threadIdx.x < w.width) s.time[number * s.d + w.first + threadIdx.x] = time;
  }
  w.store(h, s.n, s.start + row);
  w.store(dh, s.n, s.end + row);
}

// From what pieces add to what they start from: a thread has one state of one sequence, of h or of dh.
// Some pieces ahead are asked for together, since each by itself would be waited for.
template <class T>
__global__ void join_edges(const __grid_constant__ ScanBackward<T> s) {
  constexpr int kAhead = 8;
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, row = s.d * s.n;
  if (at >= row) return;
  const float A = s.A[at / s.n * s.A_stride + at % s.n] * kLog2e;
  const int64_t first = s.sequences.first_piece(blockIdx.y, s.shift);
  const auto whole = s.sequences.whole(blockIdx.y);
  const int64_t count = (whole.stop - whole.start + (int64_t{1} << s.shift) - 1) >> s.shift;
  if (count < 2) return;
  const bool back = blockIdx.z == 1;
  float* edge = (back ? s.end : s.start) + at;
  const float* time = s.time + at / s.n;
  float carried = 0;
  for (int64_t done = 0; done < count; done += kAhead) {
    float added[kAhead], span[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const int64_t p = first + (back ? count - 1 - done - i : done + i);
      if (done + i < count) added[i] = edge[p * row], span[i] = time[p * s.d];
    }
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (done + i >= count) break;
      edge[(first + (back ? count - 1 - done - i : done + i)) * row] = carried;
      carried = fmaf(exp2_approx(A * span[i]), carried, added[i]);
    }
  }
}

// A tile back: `dh` has exp(dt A) dh of the token after it.
template <class W>
__device__ __forceinline__ void walk_back(const W& w, const ScanBackward<typename W::T>& s,
                                          const Held<W>& A, const Held<W>& B_of, const Held<W>& C_of,
                                          Held<W>& dh, Held<W>& dA, Held<W>& dB_of, Held<W>& dC_of) {
#pragma unroll 2
  for (int step = W::kSteps - 1; step >= 0; step--) {
    float dt[W::kOwn], dtu[W::kOwn], g[W::kOwn], B[W::kStates], C[W::kStates];
    w.take(w.dt, step, dt);
    w.take(w.dtu, step, dtu);
    w.take(w.g, step, g);
    w.coefficients(w.B, step, B);
    w.coefficients(w.C, step, C);
    float q[W::kOwn] = {}, through[W::kOwn] = {}, dB[W::kStates] = {}, dC[W::kStates] = {};
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
#pragma unroll
      for (int i = 0; i < W::kStates; i += 4) {
        const float4 four = w.held(step, (k * W::kStates + i) / 4);
        const float h[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = i; j < i + 4; j++) {
          const float b = W::kAny && s.B_constant ? B_of[k][j] : B[j];
          const float c = W::kAny && s.C_constant ? C_of[k][j] : C[j];
          const float dh_j = fmaf(c, g[k], dh[k][j]);
          const float flow = dh_j * fmaf(-dtu[k], b, h[j - i]);
          q[k] = fmaf(dh_j, b, q[k]);
          through[k] = fmaf(flow, A[k][j], through[k]);
          dA[k][j] = fmaf(flow, dt[k], dA[k][j]);
          if (W::kAny && s.B_constant)
            dB_of[k][j] = fmaf(dh_j, dtu[k], dB_of[k][j]);
          else
            dB[j] = fmaf(dh_j, dtu[k], dB[j]);
          if (W::kAny && s.C_constant)
            dC_of[k][j] = fmaf(h[j - i], g[k], dC_of[k][j]);
          else
            dC[j] = fmaf(h[j - i], g[k], dC[j]);
          dh[k][j] = exp2_approx(dt[k] * A[k][j]) * dh_j;
        }
      }
    // The thread's own h of this step is no longer needed.
#pragma unroll
    for (int i = 0; i < W::kStates; i += 4) {
      w.held(step, i / 4) = make_float4(dB[i], dB[i + 1], dB[i + 2], dB[i + 3]);
      w.held(step, (W::kStates + i) / 4) = make_float4(dC[i], dC[i + 1], dC[i + 2], dC[i + 3]);
    }
    sum_states(w, q, w.q + step * W::kWidth);
    sum_states(w, through, w.through + step * W::kWidth);
  }
}

// du, ddelta and dz of a tile; dD and dbias are added to.
template <class W>
__device__ __forceinline__ void leave_tile(const W& w, const ScanBackward<typename W::T>& s,
                                           const Share<W>& raw, int64_t t, int steps, float& dD,
                                           float& dbias) {
  constexpr float kLn2 = 0x1.62e43p-1f;
#pragma unroll
  for (int r = 0; r < Share<W>::kItems; r++) {
    const int i = threadIdx.x + r * W::kThreads, step = Share<W>::step(r), c = Share<W>::channel(r);
    if (step >= steps || c >= w.width) continue;
    const int64_t at = t + step, x = w.first + c;
    const float g = w.g[i], dt = w.dt[i], q = w.q[i], u = to_float(raw.u[r]);
    const float D = s.D ? s.D[x] : 0.0f;
    from_float(s.du[at * s.du_stride + x], fmaf(dt, q, D * g));
    float ddelta = fmaf(u, q, w.through[i] * kLn2);
    if (s.softplus) {
      const float before = to_float(raw.delta[r]) + (s.bias ? s.bias[x] : 0.0f);
      ddelta *= reciprocal_approx(1.0f + exp2_approx(before * -kLog2e));
    }
    from_float(s.ddelta[at * s.ddelta_stride + x], ddelta);
    if (s.z) {
      const float z = to_float(raw.z[r]);
      const float gate = reciprocal_approx(1.0f + exp2_approx(z * -kLog2e));
      const float slope = gate * fmaf(z, 1.0f - gate, 1.0f);
      from_float(s.dz[at * s.dz_stride + x], to_float(raw.dy[r]) * fmaf(D, u, w.y[i]) * slope);
    }
    dD = fmaf(g, u, dD);
    dbias += ddelta;
  }
}

// dB and dC of a tile, from all channels of the block, always in one order: fours of them, each
// from kParts threads that add up neighbouring groups.
template <class W>
__device__ __forceinline__ void leave_coefficients(const W& w, const ScanBackward<typename W::T>& s,
                                                   int64_t t, int steps) {
  constexpr int fours = W::kN / 4, all = W::kSteps * 2 * fours;
  constexpr int kParts = all < W::kThreads ? W::kThreads / all : 1;
  constexpr int of_part = W::kGroups / kParts;
  const int part = threadIdx.x % kParts;
  for (int o = threadIdx.x / kParts; o < all; o += W::kThreads / kParts) {
    const int four = o % fours, of_C = o / fours % 2, step = o / (2 * fours);
    const int sub = four / (W::kStates / 4), quad = of_C * (W::kStates / 4) + four % (W::kStates / 4);
    const float4* from = w.history + (step * W::kQuads + quad) * W::kThreads + sub;
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < of_part; i++) {
      const float4 more = from[(part * of_part + i) * W::kLanes];
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
#pragma unroll
    for (int lane = 1; lane < kParts; lane *= 2) {
      total.x += __shfl_xor_sync(0xffffffffu, total.x, lane);
      total.y += __shfl_xor_sync(0xffffffffu, total.y, lane);
      total.z += __shfl_xor_sync(0xffffffffu, total.z, lane);
      total.w += __shfl_xor_sync(0xffffffffu, total.w, lane);
    }
    if (part > 0 || step >= steps || (of_C ? s.C_constant : s.B_constant)) continue;
    float* to = s.shares +
                (((w.block * s.sequences.tokens + t + step) * s.groups + w.group) * 2 + of_C) * s.n;
    const float sums[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (four * 4 + j < s.n) to[four * 4 + j] = sums[j];
  }
}

// A block takes pieces in turn, since its memory for tiles is to stay in the cache.
template <class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    scan_back(const __grid_constant__ ScanBackward<typename W::T> s) {
  extern __shared__ __align__(16) float memory[];
  const int64_t of_piece = (int64_t{1} << s.shift) / W::kSteps;
  float4* tiles = reinterpret_cast<float4*>(s.tiles + blockIdx.x * of_piece * W::kTileFloats);
  for (int64_t item = blockIdx.x; item < s.pieces * s.blocks; item += gridDim.x) {
    const W w(memory, s, item % s.blocks);
    const int64_t number = item / s.blocks, row = number * s.d * s.n;
    const auto piece = s.sequences.piece(number, s.shift);
    Held<W> A, B, C, h, dh, dA{}, dB{}, dC{};
    float dD = 0, dbias = 0;
    if (piece.begin < piece.end) {
      load_A(w, s, A);
      load_constant(w, s.B, s.B_constant, s.B_stride, s.n, B);
      load_constant(w, s.C, s.C_constant, s.C_stride, s.n, C);
      w.load(s.start + row, s.n, s.n, h);
      w.load(s.end + row, s.n, s.n, dh);
      const int count = static_cast<int>((piece.end - piece.begin + W::kSteps - 1) / W::kSteps);
      const auto token = [&](int tile) { return piece.begin + tile * W::kSteps; };
      const auto steps_of = [&](int tile) { return tile_steps(token(tile), piece.end, W::kSteps); };
      const auto h_before = [&](int tile, int quad) -> float4& {
        return tiles[(tile * W::kQuads + quad) * W::kThreads + threadIdx.x];
      };
      Share<W> next;
      if (count > 1) next.template fetch<false>(w, s, token(0), W::kSteps);
      for (int tile = 0; tile < count; tile++) {
#pragma unroll
        for (int k = 0; k < W::kOwn; k++)
#pragma unroll
          for (int i = 0; i < W::kStates; i += 4)
            h_before(tile, (k * W::kStates + i) / 4) =
                make_float4(h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3]);
        if (tile == count - 1) break;
        next.template place<false>(w, s, W::kSteps);
        __syncthreads();
        if (tile + 2 < count) next.template fetch<false>(w, s, token(tile + 1), W::kSteps);
#pragma unroll 2
        for (int step = 0; step < W::kSteps; step++) advance(w, step, s.B_constant, A, B, h);
        __syncthreads();
      }
      next.template fetch<true>(w, s, token(count - 1), steps_of(count - 1));
      for (int tile = count - 1; tile >= 0; tile--) {
        const int steps = steps_of(tile);
        const Share<W> now = next;
        now.template place<true>(w, s, steps);
#pragma unroll
        for (int k = 0; k < W::kOwn; k++)
#pragma unroll
          for (int i = 0; i < W::kStates; i += 4) {
            const float4 four = h_before(tile, (k * W::kStates + i) / 4);
            h[k][i] = four.x, h[k][i + 1] = four.y, h[k][i + 2] = four.z, h[k][i + 3] = four.w;
          }
        __syncthreads();
        if (tile > 0) next.template fetch<true>(w, s, token(tile - 1), W::kSteps);
#pragma unroll 2
        for (int step = 0; step < W::kSteps; step++) {
          advance(w, step, s.B_constant, A, B, h);
          float y[W::kOwn] = {}, c[W::kStates];
          w.coefficients(w.C, step, c);
#pragma unroll
          for (int k = 0; k < W::kOwn; k++)
#pragma unroll
            for (int i = 0; i < W::kStates; i += 4) {
              w.held(step, (k * W::kStates + i) / 4) =
                  make_float4(h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3]);
#pragma unroll
              for (int j = i; j < i + 4; j++)
                y[k] = fmaf(W::kAny && s.C_constant ? C[k][j] : c[j], h[k][j], y[k]);
            }
          sum_states(w, y, w.y + step * W::kWidth);
        }
        walk_back(w, s, A, B, C, dh, dA, dB, dC);
        __syncthreads();
        leave_tile(w, s, now, token(tile), steps, dD, dbias);
        leave_coefficients(w, s, token(tile), steps);
        __syncthreads();
      }
    }
    w.store(dA, s.n, s.start + row);
    if constexpr (W::kAny) {
      if (s.B_constant) w.store(dB, s.n, s.end + row);
      if (s.C_constant) w.store(dC, s.n, s.constant_C + row);
    }
    // Threads that had the same channels at the edge.
    float *sums = reinterpret_cast<float*>(w.history), *more = sums + W::kThreads;
    sums[threadIdx.x] = dD;
    more[threadIdx.x] = dbias;
    __syncthreads();
    if (const int c = threadIdx.x; c < w.width) {
      float total = 0, other = 0;
      for (int i = c; i < W::kThreads; i += W::kWidth) total += sums[i], other += more[i];
      s.dD[number * s.d + w.first + c] = total;
      s.dbias[number * s.d + w.first + c] = other;
    }
    __syncthreads();
  }
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

}  // namespace ss::cuda
