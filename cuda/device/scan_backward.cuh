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

template <class T_, int States, int Lanes, int Own, bool Any>
struct Walk {
  using T = T_;
  static constexpr int kStates = States, kLanes = Lanes, kOwn = Own;
  static constexpr bool kAny = Any;  // B or C may be constant
  static constexpr int kThreads = 128, kSteps = 8;
  static constexpr int kN = States * Lanes;                // states of a channel, padded
  static constexpr int kGroups = kThreads / Lanes;         // threads that share a set of states
  static constexpr int kWidth = kGroups * Own;             // channels of a block
  static constexpr int kHeld = States * Own, kQuads = kHeld / 4;  // of a thread
  static constexpr int kColumns = kWidth > kThreads ? kWidth / kThreads : 1;  // of a thread's edge
  static_assert(Own >= 2 && States % 4 == 0);

  // Shared memory, in floats.
  static constexpr int kTokens = kSteps * kWidth;  // an array by token and channel
  static constexpr int kHistory = kSteps * kQuads * kThreads * 4;
  static constexpr int kEdge = 3 * kTokens + 2 * kSteps * kN;  // all that scan_edges has
  static constexpr int kEdgeBytes = kEdge * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kEdgeBytes + (3 * kTokens + kHistory) * static_cast<int>(sizeof(float));
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

// B or C of a tile, from token t on; zeros after `steps` tokens.
template <class W>
__device__ void enter_coefficients(const W& w, const void* from, bool constant, int64_t stride,
                                   int64_t n, int64_t t, int steps, float* to) {
  if (constant) return;
  using T = typename W::T;
  for (int i = threadIdx.x; i < W::kSteps * W::kN; i += W::kThreads) {
    const int step = i / W::kN, j = i % W::kN;
    to[i] = step < steps && j < n
                ? to_float(static_cast<const T*>(from)[(t + step) * stride + w.group * n + j])
                : 0.0f;
  }
}

// dt and dt u of a tile, and with `back` g = dy silu(z). Zeros where there is no token or channel:
// they change nothing.
template <bool back, class W>
__device__ void enter_tile(const W& w, const ScanBackward<typename W::T>& s, int64_t t, int steps) {
  for (int i = threadIdx.x; i < W::kTokens; i += W::kThreads) {
    const int step = i / W::kWidth, c = i % W::kWidth;
    const int64_t at = t + step, x = w.first + c;
    float dt = 0, u = 0, g = 0;
    if (step < steps && c < w.width) {
      dt = to_float(s.delta[at * s.delta_stride + x]) + (s.bias ? s.bias[x] : 0.0f);
      if (s.softplus) dt = softplus(dt);
      u = to_float(s.u[at * s.u_stride + x]);
      if (back) {
        g = to_float(s.dy[at * s.dy_stride + x]);
        if (s.z) g *= silu(to_float(s.z[at * s.z_stride + x]));
      }
    }
    w.dt[i] = dt;
    w.dtu[i] = dt * u;
    if (back) w.g[i] = g;
  }
  enter_coefficients(w, s.B, s.B_constant, s.B_stride, s.n, t, steps, w.B);
  if (back) enter_coefficients(w, s.C, s.C_constant, s.C_stride, s.n, t, steps, w.C);
}

}  // namespace ss::cuda
