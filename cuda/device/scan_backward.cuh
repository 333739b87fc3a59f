// The scan walked back. A piece of a sequence is a block's: it has the state h that the piece starts
// from and the gradient dh that comes back from behind it, and goes through the piece in tiles of
// kSteps tokens: forward once, leaving h before each tile in memory that stays in the L2 cache; then
// tile by tile from the last, forward again with every h kept in shared memory, and back.
// A channel's states lie on kLanes threads of kStates each, and a thread has kOwn channels, so that
// sums over states (y, du, d dt) and over channels (dB, dC) both begin in registers.
#pragma once
#include "activation.cuh"
#include "pack.cuh"
#include "sequences.cuh"

namespace ss::cuda {

template <class T>
struct ScanBackward {
  const T *u, *delta, *z, *dy;  // [t, d]; z may be null
  T *du, *ddelta, *dz;          // [t, d]
  int64_t u_stride, delta_stride, z_stride, dy_stride, du_stride, ddelta_stride, dz_stride;
  const float *A, *D, *bias;  // [d, n], [d], [d]; the last two may be null
  int64_t A_stride;
  const void *B, *C;  // T [t, g, n], or constant f32 [d, n]
  int64_t B_stride, C_stride;
  bool B_constant, C_constant, softplus;
  Sequences sequences;
  int shift;       // a piece has 1 << shift tokens
  int64_t pieces;  // as many as are launched
  float* start;    // [pieces, d, n]: what a piece adds to h, then the h it starts from, then its dA
  float* end;      // the same of dh, from behind; then its dB, where B is constant
  float* constant_C;       // [pieces, d, n]: its dC, where C is constant
  float* time;             // [pieces, d]: the sum of dt
  float *dD, *dbias;       // [pieces, d]
  float* shares;           // [group_blocks, t, g, 2, n]: dB and dC of one block's channels
  float* tiles;            // [blocks of the launch][tiles of a piece][floats of a block's h]
  int64_t d, n, groups, group_channels;
  unsigned group_blocks, blocks;  // blocks of channels: of a group, of all; none spans two groups
};

__host__ __device__ constexpr int smallest(int a, int b) { return a < b ? a : b; }

template <class T_, int States, int Lanes, int Own, int Steps, bool Any>
struct Walk {
  using T = T_;
  static constexpr int kStates = States, kLanes = Lanes, kOwn = Own;
  static constexpr bool kAny = Any;  // B or C may be constant
  static constexpr int kThreads = 128, kSteps = Steps;
  static constexpr int kN = States * Lanes;                // states of a channel, padded
  static constexpr int kGroups = kThreads / Lanes;         // threads that share a set of states
  static constexpr int kWidth = kGroups * Own;             // channels of a block
  static constexpr int kHeld = States * Own, kQuads = kHeld / 4;  // of a thread
  static_assert(Own >= 2 && States % 4 == 0 && kWidth <= kThreads);

  // Shared memory, in floats.
  static constexpr int kTokens = kSteps * kWidth;  // an array by token and channel
  static constexpr int kHistory = kSteps * kQuads * kThreads * 4;
  static constexpr int kEdge = 3 * kTokens + 2 * kSteps * kN;  // all that scan_edges has
  static constexpr int kEdgeBytes = kEdge * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kEdgeBytes + (3 * kTokens + kHistory) * static_cast<int>(sizeof(float));
  // Of a multiprocessor at once: what its shared memory holds, and enough registers for each.
  static constexpr int kBlocks = smallest(Own * States > 8 ? 3 : 4, (227 << 10) / (kBytes + 1024));
  static constexpr int kTileFloats = kThreads * kHeld;  // h of a block

  float *dt, *dtu, *g;     // [step][channel]
  float *B, *C;            // [step][kN]
  float *y, *q, *through;  // [step][channel]
  float4* history;         // [step][quad][thread]
  int sub, own;                          // the thread's states and channels: which of its kind
  int64_t first, group, block;           // channel; group of B and C; block within the group
  int width;                             // channels that there are, from `first` on

  __device__ Walk(float* memory, const ScanBackward<T>& s, int64_t number)
      : dt(memory),
        dtu(dt + kTokens),
        g(dtu + kTokens),
        B(g + kTokens),
        C(B + kSteps * kN),
        y(memory + kEdge),
        q(y + kTokens),
        through(q + kTokens),
        history(reinterpret_cast<float4*>(through + kTokens)),
        sub(threadIdx.x % Lanes),
        own(threadIdx.x / Lanes * Own) {
    group = number / s.group_blocks, block = number % s.group_blocks;
    first = group * s.group_channels + block * kWidth;
    const int64_t there = (group + 1) * s.group_channels - first;
    width = there < kWidth ? static_cast<int>(there) : kWidth;
  }

  __device__ float4& held(int step, int quad) const {
    return history[(step * kQuads + quad) * kThreads + threadIdx.x];
  }
  // Rows of n a channel, [.., d, n] or of a stride: the thread's part, zeros where there is none.
  __device__ void load(const float* from, int64_t stride, int64_t n, float (&to)[Own][States]) const {
#pragma unroll
    for (int k = 0; k < Own; k++)
#pragma unroll
      for (int i = 0; i < States; i++) {
        const int j = sub * States + i;
        to[k][i] = own + k < width && j < n ? from[(first + own + k) * stride + j] : 0.0f;
      }
  }
  __device__ void store(const float (&from)[Own][States], int64_t n, float* to) const {
#pragma unroll
    for (int k = 0; k < Own; k++)
#pragma unroll
      for (int i = 0; i < States; i++) {
        const int j = sub * States + i;
        if (own + k < width && j < n) to[(first + own + k) * n + j] = from[k][i];
      }
  }
  // kOwn neighbours of an array by token and channel.
  __device__ void take(const float* row, int step, float (&to)[Own]) const {
    const Pack<Own> some = Pack<Own>::load(row + step * kWidth + own);
#pragma unroll
    for (int k = 0; k < Own; k++) to[k] = some.item[k];
  }
  __device__ void coefficients(const float* row, int step, float (&to)[States]) const {
#pragma unroll
    for (int i = 0; i < States; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + step * kN + sub * States + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }
};

// One step of h. `constant` is B of the thread's channels, where it is constant.
template <class W>
__device__ __forceinline__ void advance(const W& w, int step, bool is_constant,
                                        const float (&A)[W::kOwn][W::kStates],
                                        const float (&constant)[W::kOwn][W::kStates],
                                        float (&h)[W::kOwn][W::kStates]) {
  float dt[W::kOwn], dtu[W::kOwn], B[W::kStates];
  w.take(w.dt, step, dt);
  w.take(w.dtu, step, dtu);
  w.coefficients(w.B, step, B);
#pragma unroll
  for (int k = 0; k < W::kOwn; k++)
#pragma unroll
    for (int i = 0; i < W::kStates; i++) {
      const float b = W::kAny && is_constant ? constant[k][i] : B[i];
      h[k][i] = fmaf(exp2_approx(dt[k] * A[k][i]), h[k][i], dtu[k] * b);
    }
}

// v[k], summed over the kLanes threads of a channel, to row[own + k]. Halves are exchanged, so that
// each thread ends with few of them.
template <class W>
__device__ __forceinline__ void sum_states(const W& w, float (&v)[W::kOwn], float* row) {
  int begin = 0, count = W::kOwn;
  bool first = true;
#pragma unroll
  for (int bit = W::kLanes / 2; bit > 0; bit /= 2) {
    const bool upper = w.sub & bit;
    if (count > 1) {
      count /= 2;
#pragma unroll
      for (int k = 0; k < W::kOwn / 2; k++) {
        if (k >= count) break;
        const float other = upper ? v[k] : v[k + count], mine = upper ? v[k + count] : v[k];
        v[k] = mine + __shfl_xor_sync(0xffffffffu, other, bit);
      }
      begin += upper ? count : 0;
    } else {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], bit);
      first = first && !upper;
    }
  }
  if (first)
#pragma unroll
    for (int k = 0; k < W::kOwn; k++)
      if (k < count) row[w.own + begin + k] = v[k];
}

// A thread's share of a tile as it comes from memory: asked for a tile ahead, and kept for the way out.
template <class W>
struct Share {
  using T = typename W::T;
  static constexpr int kItems = (W::kTokens + W::kThreads - 1) / W::kThreads;
  static constexpr int kCoefficients = (W::kSteps * W::kN + W::kThreads - 1) / W::kThreads;
  T u[kItems], delta[kItems], z[kItems], dy[kItems], B[kCoefficients], C[kCoefficients];

  // Step and channel of item r of this thread.
  __device__ static int step(int r) { return (threadIdx.x + r * W::kThreads) / W::kWidth; }
  __device__ static int channel(int r) { return (threadIdx.x + r * W::kThreads) % W::kWidth; }

  // Tokens [t, t + steps) of the block's channels; the rest are zeros, which change nothing. Without
  // `back` only what h needs.
  template <bool back>
  __device__ __forceinline__ void fetch(const W& w, const ScanBackward<T>& s, int64_t t, int steps) {
#pragma unroll
    for (int r = 0; r < kItems; r++) {
      const int64_t at = t + step(r), x = w.first + channel(r);
      const bool there = step(r) < steps && channel(r) < w.width;
      u[r] = there ? s.u[at * s.u_stride + x] : T(0.0f);
      delta[r] = there ? s.delta[at * s.delta_stride + x] : T(0.0f);
      if constexpr (back) {
        dy[r] = there ? s.dy[at * s.dy_stride + x] : T(0.0f);
        z[r] = there && s.z ? s.z[at * s.z_stride + x] : T(0.0f);
      }
    }
    coefficients(w, s.B, s.B_constant, s.B_stride, s.n, t, steps, B);
    if constexpr (back) coefficients(w, s.C, s.C_constant, s.C_stride, s.n, t, steps, C);
  }
  // dt, dt u, B, and with `back` g = dy silu(z) and C, to shared memory.
  template <bool back>
  __device__ __forceinline__ void place(const W& w, const ScanBackward<T>& s, int steps) const {
#pragma unroll
    for (int r = 0; r < kItems; r++) {
      const int i = threadIdx.x + r * W::kThreads, c = channel(r);
      if (W::kTokens % W::kThreads != 0 && i >= W::kTokens) break;
      const bool there = step(r) < steps && c < w.width;
      float dt = to_float(delta[r]) + (s.bias && there ? s.bias[w.first + c] : 0.0f);
      if (s.softplus) dt = softplus(dt);
      dt = there ? dt : 0.0f;
      w.dt[i] = dt;
      w.dtu[i] = dt * to_float(u[r]);
      if constexpr (back) w.g[i] = s.z ? to_float(dy[r]) * silu(to_float(z[r])) : to_float(dy[r]);
    }
#pragma unroll
    for (int r = 0; r < kCoefficients; r++) {
      const int i = threadIdx.x + r * W::kThreads;
      if (W::kSteps * W::kN % W::kThreads != 0 && i >= W::kSteps * W::kN) break;
      w.B[i] = to_float(B[r]);
      if constexpr (back) w.C[i] = to_float(C[r]);
    }
  }

 private:
  __device__ __forceinline__ static void coefficients(const W& w, const void* from, bool constant,
                                                      int64_t stride, int64_t n, int64_t t, int steps,
                                                      T (&to)[kCoefficients]) {
#pragma unroll
    for (int r = 0; r < kCoefficients; r++) {
      const int i = threadIdx.x + r * W::kThreads, at = i / W::kN, j = i % W::kN;
      to[r] = !constant && at < steps && j < n
                  ? static_cast<const T*>(from)[(t + at) * stride + w.group * n + j]
                  : T(0.0f);
    }
  }
};

}  // namespace ss::cuda
