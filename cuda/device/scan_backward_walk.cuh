// The scan's backward, last pass: a piece walked back, tile by tile, and sums over blocks.
#pragma once
#include "scan_backward_edges.cuh"

namespace ss::cuda {

// A warp's shared memory in scan_back.
template <class W>
struct Room {
  float *dt, *dtu, *through, *g, *q, *y;  // [step][channel]
  float* states;        // two of: B and C of a tile, then dB and dC of it, [step][kN] of each
  float *D, *bias;      // [channel]
  float4* history;      // [step][quad][kSlots]: h before the step, then dB and dC of the thread's channels
  float4* start;        // [quad][lane]: h that the piece starts from
  __device__ explicit Room(float* memory)
      : dt(memory),
        dtu(dt + W::kTokens),
        through(dtu + W::kTokens),
        g(through + W::kTokens),
        q(g + W::kTokens),
        y(q + W::kTokens),
        states(y + W::kTokens),
        D(states + 2 * W::kCoefficients),
        bias(D + W::kWidth),
        history(reinterpret_cast<float4*>(bias + W::kWidth)),
        start(history + kTile * W::kQuads * W::kSlots) {}
};

// What a thread keeps of its tokens and channels from the way in to the way out.
template <class W>
struct Kept {
  Words<typename W::T, W::kVector> u[W::kPasses];
  Some<W> slope, gate, skip;  // slopes of softplus, and of silu times dy; D g
};

template <class W>
__device__ __forceinline__ void enter_tile(const W& w, const ScanBackward<typename W::T>& s,
                                           const Room<W>& room, const Share<W>& raw, int steps,
                                           Kept<W>& kept, float (&dD)[W::kVector]) {
  float D[W::kVector];
  load_floats<W::kVector>(room.D + Share<W>::channel(w), D);
#pragma unroll
  for (int p = 0; p < W::kPasses; p++) kept.u[p] = raw.u[p];
  bring_tile<W, true>(w, s, raw, room.bias, steps, room.dt, room.dtu, room.g, kept.slope, kept.gate,
                      [&](int p, int v, float u, float g) {
                        kept.skip[p][v] = D[v] * g;
                        dD[v] = fmaf(g, u, dD[v]);
                      });
}

// Where the thread's part of a tile goes.
template <class W>
struct Places {
  typename W::T *du, *ddelta, *dz, *y;
  const typename W::T* z;
  float* share;

  __device__ __forceinline__ Places(const W& w, const ScanBackward<typename W::T>& s, int64_t t) {
    const int64_t x = w.first + Share<W>::channel(w), at = t + Share<W>::step(w, 0);
    du = s.du + at * s.du_stride + x, ddelta = s.ddelta + at * s.ddelta_stride + x;
    dz = s.z ? s.dz + at * s.dz_stride + x : nullptr;
    y = s.y ? s.y + at * s.y_stride + x : nullptr;
    z = s.y && s.z ? s.z + at * s.z_stride + x : nullptr;
    share = s.shares + ((w.block * s.sequences.tokens + t) * s.groups + w.group) * 2 * s.n;
  }
  __device__ __forceinline__ void back(const ScanBackward<typename W::T>& s) {
    du -= kTile * s.du_stride, ddelta -= kTile * s.ddelta_stride;
    if (s.z) dz -= kTile * s.dz_stride;
    if (s.y) y -= kTile * s.y_stride;
    if (s.y && s.z) z -= kTile * s.z_stride;
    share -= kTile * s.groups * 2 * s.n;
  }
};

// du, ddelta and dz of a tile; y, where it is asked for, for which z comes from the cache once more: kept on the way,
// it would be in the way.
template <class W>
__device__ __forceinline__ void leave_tile(const W& w, const ScanBackward<typename W::T>& s,
                                           const Room<W>& room, const Kept<W>& kept,
                                           const Places<W>& places, int steps,
                                           float (&dbias)[W::kVector]) {
  constexpr float kLn2 = 0x1.62e43p-1f;
  constexpr int V = W::kVector;
  const int c = Share<W>::channel(w);
  float D[V];
  load_floats<V>(room.D + c, D);
  Words<typename W::T, V> z[W::kPasses];
#pragma unroll
  for (int p = 0; p < W::kPasses; p++) {
    const int there = Share<W>::step(w, p) < steps ? w.width - c : 0;
    if (!s.y || !s.z || there <= 0) break;
    const typename W::T* from = places.z + p * W::kRows * s.z_stride;
    s.wide && there >= V ? z[p].load(from) : z[p].load(from, there);
  }
#pragma unroll
  for (int p = 0; p < W::kPasses; p++) {
    const int row = Share<W>::step(w, p), there = w.width - c;
    if (row >= steps || there <= 0) break;
    const int at = row * W::kWidth + c;
    float dt[V], q[V], through[V], y[V], du[V], ddelta[V], dz[V];
    load_floats<V>(room.dt + at, dt);
    load_floats<V>(room.q + at, q);
    load_floats<V>(room.through + at, through);
    load_floats<V>(room.y + at, y);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float u = kept.u[p][v];
      du[v] = fmaf(dt[v], q[v], kept.skip[p][v]);
      ddelta[v] = fmaf(u, q[v], through[v] * kLn2) * kept.slope[p][v];
      dbias[v] += ddelta[v];
      if (s.z) dz[v] = kept.gate[p][v] * fmaf(D[v], u, y[v]);
    }
    store_some<V>(du, s.wide, there, places.du + p * W::kRows * s.du_stride);
    store_some<V>(ddelta, s.wide, there, places.ddelta + p * W::kRows * s.ddelta_stride);
    if (s.z) store_some<V>(dz, s.wide, there, places.dz + p * W::kRows * s.dz_stride);
    if (!s.y) continue;
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = fmaf(D[v], kept.u[p][v], y[v]) * (s.z ? silu(z[p][v]) : 1.0f);
    store_some<V>(y, s.wide, there, places.y + p * W::kRows * s.y_stride);
  }
}

// A tile forward from h before it to the last, keeping h before each token.
template <class W>
__device__ __forceinline__ void walk_forward(const W& w, const ScanBackward<typename W::T>& s,
                                             const Room<W>& room, const float* states, const Held<W>& A,
                                             const Held<W>& B_of, Held<W>& h) {
#pragma unroll
  for (int step = 0; step < kTile; step++) {
    float dt[W::kOwn], dtu[W::kOwn], b[W::kStates];
    w.take(room.dt, step, dt);
    w.take(room.dtu, step, dtu);
    w.coefficients(states, step, b);
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
#pragma unroll
      for (int i = 0; i < W::kStates; i += 4) {
        room.history[(step * W::kQuads + (k * W::kStates + i) / 4) * W::kSlots + w.lane] =
            make_float4(h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3]);
#pragma unroll
        for (int j = i; j < i + 4; j++)
          h[k][j] = fmaf(exp2_approx(dt[k] * A[k][j]), h[k][j],
                         dtu[k] * (W::kAny && s.B_constant ? B_of[k][j] : b[j]));
      }
  }
}

// A tile back from the last h: `dh` has exp(dt A) dh of the token after it, which with h before a token is
// the flow through that token's decay.
template <class W>
__device__ __forceinline__ void walk_back(const W& w, const ScanBackward<typename W::T>& s,
                                          const Room<W>& room, const float* states, const Held<W>& A,
                                          const Held<W>& B_of, const Held<W>& C_of, Held<W>& h, Held<W>& dh,
                                          Held<W>& dA, Held<W>& dB_of, Held<W>& dC_of) {
#pragma unroll 2  // more do not fit the cache of instructions
  for (int step = kTile - 1; step >= 0; step--) {
    float dt[W::kOwn], dtu[W::kOwn], g[W::kOwn], b[W::kStates], c[W::kStates];
    w.take(room.dt, step, dt);
    w.take(room.dtu, step, dtu);
    w.take(room.g, step, g);
    w.coefficients(states, step, b);
    w.coefficients(states + W::kCoefficients / 2, step, c);
    float4* held = room.history + step * W::kQuads * W::kSlots + w.lane;
    float y[W::kOwn] = {}, q[W::kOwn] = {}, through[W::kOwn] = {}, dB[W::kStates] = {}, dC[W::kStates] = {};
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
#pragma unroll
      for (int i = 0; i < W::kStates; i += 4) {
        const float4 four = held[(k * W::kStates + i) / 4 * W::kSlots];
        const float before[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = i; j < i + 4; j++) {
          const float b_j = W::kAny && s.B_constant ? B_of[k][j] : b[j];
          const float c_j = W::kAny && s.C_constant ? C_of[k][j] : c[j];
          const float dh_j = fmaf(c_j, g[k], dh[k][j]);
          dh[k][j] = exp2_approx(dt[k] * A[k][j]) * dh_j;
          const float flow = dh[k][j] * before[j - i];
          q[k] = fmaf(dh_j, b_j, q[k]);
          through[k] = fmaf(flow, A[k][j], through[k]);
          dA[k][j] = fmaf(flow, dt[k], dA[k][j]);
          float& dB_j = W::kAny && s.B_constant ? dB_of[k][j] : dB[j];
          float& dC_j = W::kAny && s.C_constant ? dC_of[k][j] : dC[j];
          dB_j = fmaf(dh_j, dtu[k], dB_j);
          dC_j = fmaf(h[k][j], g[k], dC_j);
          y[k] = fmaf(c_j, h[k][j], y[k]);
          h[k][j] = before[j - i];
        }
      }
    // The thread's own h before this step is no longer needed.
#pragma unroll
    for (int i = 0; i < W::kStates; i += 4) {
      held[i / 4 * W::kSlots] = make_float4(dB[i], dB[i + 1], dB[i + 2], dB[i + 3]);
      held[(W::kStates + i) / 4 * W::kSlots] = make_float4(dC[i], dC[i + 1], dC[i + 2], dC[i + 3]);
    }
    sum_states(w, y, room.y + step * W::kWidth);
    sum_states(w, q, room.q + step * W::kWidth);
    sum_states(w, through, room.through + step * W::kWidth);
  }
}

// dB and dC of a tile from all channels of the warp, to where B and C were.
template <class W>
__device__ __forceinline__ void add_channels(const W& w, const Room<W>& room, float* to) {
#pragma unroll
  for (int p = 0; p < kTile * W::kQuads * W::kLanes / 32; p++) {
    const int o = w.lane + 32 * p, sub = o % W::kLanes, row = o / W::kLanes;
    const float4* from = room.history + row * W::kSlots + sub;
    float4 total = *from;
#pragma unroll
    for (int i = 1; i < W::kGroups; i++) {
      const float4 more = from[i * W::kLanes];
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    const int step = row / W::kQuads, quad = row % W::kQuads, of_C = quad / (W::kStates / 4);
    const int at = (of_C * kTile + step) * W::kN + sub * W::kStates + quad % (W::kStates / 4) * 4;
    *reinterpret_cast<float4*>(to + at) = total;
  }
}

// ... and of all warps of the block, in order, to the block's shares.
template <class W>
__device__ __forceinline__ void leave_coefficients(const ScanBackward<typename W::T>& s, const float* first,
                                                   float* share, int steps) {
  constexpr int fours = W::kN / 4;
#pragma unroll
  for (int r = 0; r * W::kThreads * 4 < W::kCoefficients; r++) {
    const int o = threadIdx.x + r * W::kThreads, of_C = o / (kTile * fours), step = o / fours % kTile;
    const int j = o % fours * 4, n = static_cast<int>(s.n);
    if (o * 4 >= W::kCoefficients || step >= steps || j >= n) continue;
    if (W::kAny && (of_C ? s.C_constant : s.B_constant)) continue;
    float4 total = *reinterpret_cast<const float4*>(first + o * 4);
#pragma unroll
    for (int i = 1; i < W::kWarps; i++) {
      const float4 more = *reinterpret_cast<const float4*>(first + i * W::kBack + o * 4);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    float* to = share + (step * static_cast<int>(s.groups) * 2 + of_C) * n + j;
    if (n % 4 == 0) {
      *reinterpret_cast<float4*>(to) = total;
    } else {
      to[0] = total.x;
      if (j + 1 < n) to[1] = total.y;
      if (j + 2 < n) to[2] = total.z;
      if (j + 3 < n) to[3] = total.w;
    }
  }
}

template <class W>
__global__ void __launch_bounds__(W::kThreads, W::kBlocks)
    scan_back(const __grid_constant__ ScanBackward<typename W::T> s) {
  extern __shared__ __align__(16) float memory[];
  const W w(s, blockIdx.x % s.blocks);
  const int64_t number = blockIdx.x / s.blocks, row = number * s.d * s.n;
  const auto piece = s.sequences.piece(number, s.shift);
  const bool fresh = piece.begin <= piece.start, last = piece.end >= piece.stop;
  const Room<W> room(memory + w.warp * W::kBack);
  Held<W> A, B, C, h{}, dh{}, dA{}, dB{}, dC{};
  float dD[W::kVector] = {}, dbias[W::kVector] = {};
  if (piece.begin < piece.end) {
    load_A(w, s, A);
    load_constant(w, s.B, s.B_constant, s.B_stride, s.n, B);
    load_constant(w, s.C, s.C_constant, s.C_stride, s.n, C);
    place_channels(w, s.D, room.D);
    place_channels(w, s.bias, room.bias);
    if (!last) w.load(s.end + row, s.n, s.n, dh);
    if (!fresh) w.load(s.start + row, s.n, s.n, h);
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
#pragma unroll
      for (int i = 0; i < W::kStates; i += 4)
        room.start[(k * W::kStates + i) / 4 * 32 + w.lane] =
            make_float4(h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3]);
    const int count = static_cast<int>((piece.end - piece.begin + kTile - 1) >> kTileShift);
    const int64_t last_tile = piece.begin + (count - 1) * kTile;
    int steps = tile_steps(last_tile, piece.end);
    const float4* inner_at = inner_states(w, s, number) + (count - 2) * inner_step<W>(s);
    const float* time_at = s.time + (number * s.tiles() + count - 2) * s.d + w.first + w.own;
    float4 inner[W::kQuads] = {};
    float time[W::kOwn] = {};
    const int64_t tile_states = inner_step<W>(s);
    const auto fetch_inner = [&] {
      if (w.width == 0) return;  // scan_edges has left nothing there, and sums over warps need zeros
#pragma unroll
      for (int i = 0; i < W::kQuads; i++) inner[i] = inner_at[i * 32];
      inner_at -= tile_states;
      if (fresh) return;
#pragma unroll
      for (int k = 0; k < W::kOwn; k++)
        if (w.own + k < w.width) time[k] = time_at[k];
      time_at -= s.d;
    };
    Share<W> raw(w, s, last_tile);
    Places<W> places(w, s, last_tile);
    raw.fetch(w, s, steps);
    if (count > 1) fetch_inner();
    __syncwarp();
    for (int tile = count - 1; tile >= 0; tile--) {
      float* states = room.states + tile % 2 * W::kCoefficients;
      Kept<W> kept;
      enter_tile(w, s, room, raw, steps, kept, dD);
      raw.place_states(w, s, steps, states);
      // h before the tile: what is left of the piece's start (nothing where that is zero, of no time), and
      // what came to be since.
#pragma unroll
      for (int i = 0; i < W::kQuads; i++) {
        const float4 from = room.start[i * 32 + w.lane];
        float* to = h[i * 4 / W::kStates] + i * 4 % W::kStates;
        to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
      }
      if (tile > 0) {
#pragma unroll
        for (int i = 0; i < W::kQuads * 4; i++) {
          const float4& four = inner[i / 4];
          const int k = i / W::kStates, j = i % W::kStates;
          const float added = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
          h[k][j] = fmaf(exp2_approx(time[k] * A[k][j]), h[k][j], added);
        }
      }
      __syncwarp();
      raw.move(s, true);
      if (tile > 0) raw.fetch(w, s, kTile);
      walk_forward(w, s, room, states, A, B, h);
      if (tile > 1) fetch_inner();
      walk_back(w, s, room, states, A, B, C, h, dh, dA, dB, dC);
      __syncwarp();
      add_channels(w, room, states);
      leave_tile(w, s, room, kept, places, steps, dbias);
      if constexpr (W::kWarps > 1)
        __syncthreads();
      else
        __syncwarp();
      leave_coefficients<W>(s, states - w.warp * W::kBack, places.share, steps);
      places.back(s);
      steps = kTile;
    }
  }
  w.store(dA, s.n, s.start + row);
  if constexpr (W::kAny) {
    if (s.B_constant) w.store(dB, s.n, s.end + row);
    if (s.C_constant) w.store(dC, s.n, s.constant_C + row);
  }
  // Threads that had the same channels.
  const int c = Share<W>::channel(w);
#pragma unroll
  for (int v = 0; v < W::kVector; v++) {
#pragma unroll
    for (int bit = W::kRowThreads; bit < 32; bit *= 2) {
      dD[v] += __shfl_xor_sync(0xffffffffu, dD[v], bit);
      dbias[v] += __shfl_xor_sync(0xffffffffu, dbias[v], bit);
    }
    if (w.lane >= W::kRowThreads || c + v >= w.width) continue;
    s.dD[number * s.d + w.first + c + v] = dD[v];
    s.dbias[number * s.d + w.first + c + v] = dbias[v];
  }
}

}  // namespace ss::cuda
