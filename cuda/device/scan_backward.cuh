// The scan walked back: what its kernels (scan_backward_edges.cuh, scan_backward_walk.cuh) are given,
// and how a warp lays it out. A warp has some channels of one piece of a sequence for itself. A channel's
// states lie on kLanes threads of kStates each, and a thread has kOwn channels, so that sums over states
// (y, du, d dt) and over channels (dB, dC) both begin in registers.
#pragma once
#include <type_traits>

#include "activation.cuh"
#include "pack.cuh"
#include "sequences.cuh"

namespace ss::cuda {

constexpr int kTileShift = 3, kTile = 1 << kTileShift;  // tokens whose states are kept at a time

template <class T>
struct ScanBackward {
  const T *u, *delta, *z, *dy;  // [t, d]; z may be null
  T *du, *ddelta, *dz, *y;      // [t, d]; dz and y may be null
  int64_t u_stride, delta_stride, z_stride, dy_stride, du_stride, ddelta_stride, dz_stride,
      y_stride;
  const float *A, *D, *bias;  // [d, n], [d], [d]; the last two may be null
  int64_t A_stride;
  const void *B, *C;  // T [t, g, n], or constant f32 [d, n]
  int64_t B_stride, C_stride;
  bool B_constant, C_constant, softplus;
  bool wide, wide_states;  // fours of channels, of B and C, are one access
  Sequences sequences;
  int shift;       // a piece has 1 << shift tokens
  int64_t pieces;  // as many as are launched
  float* start;    // [pieces, d, n]: what a piece adds to h, then the h it starts from, then its dA
  float* end;      // the same of dh, from behind; then its dB, where B is constant
  float* constant_C;       // [pieces, d, n]: its dC, where C is constant
  float* time;             // [pieces, tiles, d]: dt summed to the end of a tile; the last: of the piece
  float* inner;            // [pieces, tiles - 1, warps]: h after a tile, as if the piece began from zero
  float *dD, *dbias;       // [pieces, d]
  float* shares;           // [group_blocks, t, g, 2, n]: dB and dC of one block's channels
  int64_t d, n, groups, group_channels, group_warps;
  unsigned group_blocks, blocks;  // blocks of channels: of a group, of all; none spans two groups

  __device__ int64_t tiles() const { return int64_t{1} << (shift - kTileShift); }
};

template <class T_, int Lanes, int Warps, bool Any>
struct Walk {
  using T = T_;
  static constexpr bool kAny = Any;  // B or C may be constant
  static constexpr int kStates = 8, kOwn = 2, kLanes = Lanes, kWarps = Warps;
  static constexpr int kThreads = 32 * Warps;
  static constexpr int kN = kStates * Lanes;                      // states of a channel, padded
  static constexpr int kGroups = 32 / Lanes, kWidth = kGroups * kOwn;  // of a warp: channels
  static constexpr int kQuads = kOwn * kStates / 4;               // of a thread

  // On the way in and out a thread has kVector neighbouring channels of kPasses tokens of a tile.
  static constexpr int kVector = kWidth < 4 ? kWidth : 4;
  static constexpr int kRowThreads = kWidth / kVector, kRows = 32 / kRowThreads;
  static constexpr int kPasses = kRows < kTile ? kTile / kRows : 1;
  static constexpr int kFours = (kTile * kN / 4 + 31) / 32;  // fours of B, and of C, of a thread

  // A warp's shared memory, in floats.
  static constexpr int kTokens = kTile * kWidth;  // an array by token and channel
  static constexpr int kCoefficients = 2 * kTile * kN;
  static constexpr int kEdge = 3 * kTokens + kCoefficients + (kWidth + 3) / 4 * 4;
  static constexpr int kSlots = Lanes < 8 ? 32 + Lanes : 32;  // fours of all threads, and what parts banks
  static constexpr int kBack =
      6 * kTokens + 2 * kCoefficients + 2 * kWidth + (kTile * kSlots + 32) * kQuads * 4;
  static constexpr int kEdgeBytes = kEdge * Warps * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kBack * Warps * static_cast<int>(sizeof(float));
  // Of a multiprocessor at once: what its 228 KiB hold.
  static constexpr int kBlocks = (228 << 10) / (kBytes + 1024);
  static constexpr int kHeld = kOwn * kStates * 32;  // states of a warp

  int lane, warp, sub, own;     // sub, own: the thread's states and channels, which of its kind
  int64_t first, group, block;  // channel; group of B and C; block within the group
  int width;                    // channels of the warp that there are, from `first` on
  int64_t number;               // of the warp, of all of a piece

  __device__ Walk(const ScanBackward<T>& s, int64_t item)
      : lane(threadIdx.x % 32), warp(threadIdx.x / 32), sub(lane % Lanes), own(lane / Lanes * kOwn) {
    group = item / s.group_blocks, block = item % s.group_blocks;
    const int64_t in_group = (block * Warps + warp) * kWidth;
    first = group * s.group_channels + in_group;
    number = group * s.group_warps + block * Warps + warp;
    const int64_t there = s.group_channels - in_group;
    width = there < 0 ? 0 : there < kWidth ? static_cast<int>(there) : kWidth;
  }

  // Rows of n a channel, [.., d, n] or of a stride: the thread's part, zeros where there is none.
  __device__ void load(const float* from, int64_t stride, int64_t n, float (&to)[kOwn][kStates]) const {
#pragma unroll
    for (int k = 0; k < kOwn; k++)
#pragma unroll
      for (int i = 0; i < kStates; i++) {
        const int j = sub * kStates + i;
        to[k][i] = own + k < width && j < n ? from[(first + own + k) * stride + j] : 0.0f;
      }
  }
  __device__ void store(const float (&from)[kOwn][kStates], int64_t n, float* to) const {
#pragma unroll
    for (int k = 0; k < kOwn; k++)
#pragma unroll
      for (int i = 0; i < kStates; i++) {
        const int j = sub * kStates + i;
        if (own + k < width && j < n) to[(first + own + k) * n + j] = from[k][i];
      }
  }
  // The thread's neighbours in an array by token and channel.
  __device__ void take(const float* row, int step, float (&to)[kOwn]) const {
    const float2 two = *reinterpret_cast<const float2*>(row + step * kWidth + own);
    to[0] = two.x, to[1] = two.y;
  }
  // Its states in B or C, [step][kN].
  __device__ void coefficients(const float* row, int step, float (&to)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + step * kN + sub * kStates + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }
};

// v[k], summed over the kLanes threads of a channel, to row[own + k]: of two channels the threads
// exchange halves first.
template <class W>
__device__ __forceinline__ void sum_states(const W& w, const float (&v)[2], float* row) {
  if constexpr (W::kLanes == 1) {
    *reinterpret_cast<float2*>(row + w.own) = make_float2(v[0], v[1]);
  } else {
    const bool upper = w.sub & 1;
    float sum = (upper ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[1], 1);
#pragma unroll
    for (int bit = 2; bit < W::kLanes; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (w.sub < 2) row[w.own + w.sub] = sum;
  }
}

// V neighbours as they come from memory: taken apart only where they are needed, since that waits.
template <class T, int V>
struct Words {
  static constexpr int kCount = V * static_cast<int>(sizeof(T)) / 4;
  uint32_t word[kCount];

  __device__ __forceinline__ void load(const T* from) {
    const Raw<uint32_t, kCount> raw = *reinterpret_cast<const Raw<uint32_t, kCount>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; i++) word[i] = raw.item[i];
  }
  // The first `there` of them.
  __device__ __forceinline__ void load(const T* from, int there) {
#pragma unroll
    for (int i = 0; i < kCount; i++) word[i] = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
      if (i >= there) break;
      if constexpr (sizeof(T) == 4)
        word[i] = reinterpret_cast<const uint32_t*>(from)[i];
      else
        word[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(from)[i]} << (i % 2 * 16);
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (std::is_same_v<T, float>)
      return __uint_as_float(word[i]);
    else if constexpr (std::is_same_v<T, __nv_bfloat16>)
      return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    else
      return __half2float(__ushort_as_half(static_cast<uint16_t>(word[i / 2] >> (i % 2 * 16))));
  }
};
template <int V, class T>
__device__ __forceinline__ void store_some(const float (&from)[V], bool wide, int there, T* to) {
  Raw<T, V> raw;
#pragma unroll
  for (int i = 0; i < V; i++) from_float(raw.item[i], from[i]);
  if (wide && there >= V) {
    *reinterpret_cast<Raw<T, V>*>(to) = raw;
  } else {
#pragma unroll
    for (int i = 0; i < V; i++)
      if (i < there) to[i] = raw.item[i];
  }
}
template <int V>
__device__ __forceinline__ void store_floats(const float (&from)[V], float* to) {
  Raw<float, V> raw;
#pragma unroll
  for (int i = 0; i < V; i++) raw.item[i] = from[i];
  *reinterpret_cast<Raw<float, V>*>(to) = raw;
}
template <int V>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[V]) {
  const Raw<float, V> raw = *reinterpret_cast<const Raw<float, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = raw.item[i];
}

// A thread's share of a tile as it comes from memory, asked for a tile ahead.
template <class W>
struct Share {
  using T = typename W::T;
  static constexpr int P = W::kPasses, V = W::kVector;
  static constexpr bool kAhead = W::kFours <= 4;  // B and C too
  Words<T, V> u[P], delta[P], z[P], dy[P];
  Words<T, 4> B[kAhead ? W::kFours : 1], C[kAhead ? W::kFours : 1];

  __device__ static int step(const W& w, int p) { return w.lane / W::kRowThreads + p * W::kRows; }
  __device__ static int channel(const W& w) { return w.lane % W::kRowThreads * V; }

  const T *u_at, *delta_at, *dy_at, *z_at, *B_at, *C_at;  // the thread's first of the tile that is next

  // Begins at token t.
  __device__ __forceinline__ Share(const W& w, const ScanBackward<T>& s, int64_t t) {
    const int64_t x = w.first + channel(w), at = t + step(w, 0);
    u_at = s.u + at * s.u_stride + x, delta_at = s.delta + at * s.delta_stride + x;
    dy_at = s.dy + at * s.dy_stride + x, z_at = s.z ? s.z + at * s.z_stride + x : nullptr;
    B_at = static_cast<const T*>(s.B) + t * s.B_stride + w.group * s.n;
    C_at = static_cast<const T*>(s.C) + t * s.C_stride + w.group * s.n;
    if constexpr (kAhead) {
      const int row = w.lane / (W::kN / 4), j = w.lane % (W::kN / 4) * 4;
      B_at += row * s.B_stride + j, C_at += row * s.C_stride + j;
    }
  }
  // To the next tile, or the one before.
  __device__ __forceinline__ void move(const ScanBackward<T>& s, bool back) {
    const auto by = [&](int64_t stride) { return back ? -kTile * stride : kTile * stride; };
    u_at += by(s.u_stride), delta_at += by(s.delta_stride), dy_at += by(s.dy_stride);
    if (s.z) z_at += by(s.z_stride);
    B_at += by(s.B_stride), C_at += by(s.C_stride);
  }
  // `steps` tokens; the others are zeros.
  __device__ __forceinline__ void fetch(const W& w, const ScanBackward<T>& s, int steps) {
    if (s.wide && steps == kTile && w.width == W::kWidth && W::kRows * P <= kTile) {
#pragma unroll
      for (int p = 0; p < P; p++) {
        u[p].load(u_at + p * W::kRows * s.u_stride);
        delta[p].load(delta_at + p * W::kRows * s.delta_stride);
        dy[p].load(dy_at + p * W::kRows * s.dy_stride);
        if (s.z) z[p].load(z_at + p * W::kRows * s.z_stride);
      }
    } else {
#pragma unroll
      for (int p = 0; p < P; p++) {
        const int there = step(w, p) < steps ? w.width - channel(w) : 0;
        u[p].load(u_at + p * W::kRows * s.u_stride, there);
        delta[p].load(delta_at + p * W::kRows * s.delta_stride, there);
        dy[p].load(dy_at + p * W::kRows * s.dy_stride, there);
        if (s.z) z[p].load(z_at + p * W::kRows * s.z_stride, there);
      }
    }
    if constexpr (kAhead) {
      constexpr int kRow = W::kN / 4, kStep = 32 / kRow;  // fours of a row; rows of all threads
#pragma unroll
      for (int r = 0; r < W::kFours; r++)
        four(s, steps, w.lane / kRow + r * kStep, w.lane % kRow * 4, B_at + r * kStep * s.B_stride,
             C_at + r * kStep * s.C_stride, B[r], C[r]);
    }
  }
  __device__ __forceinline__ void four(const ScanBackward<T>& s, int steps, int row, int j, const T* from_b,
                                       const T* from_c, Words<T, 4>& b, Words<T, 4>& c) const {
    if (s.wide_states && steps == kTile && s.n == W::kN && kTile * W::kN % 128 == 0) {
      b.load(from_b), c.load(from_c);
    } else {
      const int there = row < steps ? static_cast<int>(s.n) - j : 0;
      b.load(from_b, s.B_constant ? 0 : there), c.load(from_c, s.C_constant ? 0 : there);
    }
  }
  // B and C of the tile to `to`: [step][kN] of each.
  __device__ __forceinline__ void place_states(const W& w, const ScanBackward<T>& s, int steps,
                                               float* to) const {
#pragma unroll
    for (int r = 0; r < W::kFours; r++) {
      Words<T, 4> b, c;
      const int o = w.lane + 32 * r, row = o / (W::kN / 4), j = o % (W::kN / 4) * 4;
      if constexpr (kAhead)
        b = B[r], c = C[r];
      else
        four(s, steps, row, j, B_at + row * s.B_stride + j, C_at + row * s.C_stride + j, b, c);
      if (o * 4 >= kTile * W::kN) break;
      *reinterpret_cast<float4*>(to + o * 4) = make_float4(b[0], b[1], b[2], b[3]);
      *reinterpret_cast<float4*>(to + W::kCoefficients / 2 + o * 4) = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
};

// softplus as in activation.cuh, and its slope, from one exponential.
__device__ __forceinline__ float softplus_slope(float x, float& slope) {
  const float e = exp2_approx(fabsf(x) * -kLog2e), r = reciprocal_approx(1.0f + e);
  slope = x < 0 ? e * r : r;
  return softplus(x);
}

}  // namespace ss::cuda
