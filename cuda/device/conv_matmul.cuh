// u = silu(conv(x)) with four taps and y = u W^T of it in one go: x is read once, u written once and not
// read.
//
// A block has a tile of 128 tokens and walks along the channels, 128 at a time. Sixteen warps convolve: a
// thread takes 4 neighbouring channels through 8 tokens, with 3 tokens before them; it puts u, rounded, into
// global memory and into shared memory, from where the tensor cores multiply it. The other four warps, a
// warpgroup, bring x, the taps and W by asynchronous copies and issue the multiplications, whose sums
// [128, N] are their registers. Turnstiles stand between the two: x is there, x is read, u is there, u is
// multiplied.
//
// The first three tokens of a sequence need its past. Their u was written by a kernel before
// (causal_conv1d.cu).
#pragma once
#include "activation.cuh"
#include "dependent.cuh"
#include "mma.cuh"
#include "sequences.cuh"
#include "turnstile.cuh"
#include "warpgroup.cuh"
#include "words.cuh"

namespace ss::cuda {

template <class T>
struct ConvMatmul {
  const T* x;  // [t, d]
  T *u, *y;    // [t, d], [t, n]
  int64_t x_stride, u_stride, y_stride;
  const float *taps, *bias;  // [d, 4], [d] or null
  int64_t taps_stride;
  const T* w;  // [n, d]
  int64_t w_stride;
  Sequences sequences;
  int steps, n;  // of 128 channels
};

// N: n or more, a multiple of 16.
template <int N>
struct ConvMatmulPlan {
  static constexpr int kTokens = 128, kChannels = 128, kBack = 3, kOwn = 8;
  static constexpr int kMultipliers = 128, kConvolvers = 512, kThreads = kMultipliers + kConvolvers;
  // Registers a thread: all sums are those of 128.
  static constexpr int kMany = N > 160 ? 240 : 192, kFew = N > 160 ? 56 : 72;
  static constexpr int kHalf = 64;  // channels in a tile's row
  static constexpr int kStages = N > 160 ? 3 : 4;  // of W, half a step each

  // Shared memory in bytes: u and x of two steps, taps of three.
  static constexpr int kTile = 2 * kTokens * kHalf, kU = 2 * kTile, kW = 2 * N * kHalf;
  static constexpr int kXRow = 2 * kChannels, kX = (kTokens + kBack) * kXRow;
  static constexpr int kTaps = 16 * kChannels, kCoefficients = kTaps + 4 * kChannels;
  static constexpr int kAtW = 2 * kU, kAtX = kAtW + kStages * kW, kAtTaps = kAtX + 2 * kX,
                       kAtTurns = kAtTaps + 3 * kCoefficients, kBytes = kAtTurns + 8 * 8;
};

// Of steps two apart.
struct ConvMatmulTurns {
  Turnstile x_there[2], x_read[2], u_there[2], multiplied[2];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ uint32_t in_shared(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void copy_sixteen(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Once this thread's copies so far are done.
__device__ __forceinline__ void arrive_copied(Turnstile& turn) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(in_shared(&turn)) : "memory");
}

template <class T>
__device__ __forceinline__ uint32_t rounded_pair(float a, float b) {
  Raw<T, 2> pair;
  from_float(pair.item[0], a), from_float(pair.item[1], b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// How many tokens of its sequence are before a token, which is one of all.
__device__ inline int64_t since_start(const Sequences& sequences, int64_t token) {
  int64_t i = 0;
  for (int64_t end = sequences.count; end - i > 1;) {
    const int64_t middle = (i + end) / 2;
    (sequences.offsets[middle] <= token ? i : end) = middle;
  }
  return token - sequences.offsets[i];
}

template <class T, int N>
__device__ __forceinline__ void convolve_tile(const ConvMatmul<T>& s, uint8_t* memory, ConvMatmulTurns& turns) {
  using P = ConvMatmulPlan<N>;
  const int lane = threadIdx.x % 32, own = (threadIdx.x - P::kMultipliers) / 32 * P::kOwn;
  const int64_t first = blockIdx.x * int64_t{P::kTokens} + own;
  // Bits of the warp's tokens: whose u is there already, and whose is not to be written.
  unsigned early, silent;
  {
    const int64_t t = first + lane % P::kOwn;
    const bool there = t < s.sequences.tokens;
    early = __ballot_sync(~0u, there && since_start(s.sequences, t) < P::kBack) & 0xffu;
    silent = early | (__ballot_sync(~0u, !there) & 0xffu);
  }
  const float* taps = reinterpret_cast<const float*>(memory + P::kAtTaps) + 4 * lane;
  const uint8_t* x = memory + P::kAtX + own * P::kXRow + lane * 8;
  uint8_t* tile = memory + lane / 16 * P::kTile + own * 128 + lane % 2 * 8;
  T* u = s.u + first * s.u_stride + lane * 4;
  const auto in_tile = [&](int j) { return tile + j * 128 + (lane / 2 % 8 ^ j) * 16; };

  for (int i = 0; i < s.steps; i++) {
    turns.x_there[i % 2].pass(i / 2);
    turns.multiplied[i % 2].pass(i / 2 + 1);  // what stood in this tile
    if (early) {
#pragma unroll 1
      for (int j = 0; j < P::kOwn; j++)
        if (early >> j & 1) copy_some<8>(in_tile(j), u + j * s.u_stride);
      end_copy_group();
    }
    Words<T, 4> window[P::kOwn + P::kBack];
#pragma unroll
    for (int r = 0; r < P::kOwn + P::kBack; r++)
      window[r] = Words<T, 4>::load(reinterpret_cast<const T*>(x + r * P::kXRow));
    turns.x_read[i % 2].arrive();
    uint32_t out[2][P::kOwn];
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      const Pack<4> tap[2] = {Pack<4>::load(taps + 2 * pair * P::kChannels),
                              Pack<4>::load(taps + (2 * pair + 1) * P::kChannels)};
      const Pack<2> start = Pack<2>::load(taps + P::kTaps / 4 + 2 * pair);
#pragma unroll
      for (int j = 0; j < P::kOwn; j++) {
        float sum[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
          sum[k] = start.item[k];
#pragma unroll
          for (int m = 0; m < 4; m++) sum[k] = fmaf(tap[k].item[m], window[j + m][2 * pair + k], sum[k]);
        }
        out[pair][j] = rounded_pair<T>(silu(sum[0]), silu(sum[1]));
      }
    }
#pragma unroll
    for (int j = 0; j < P::kOwn; j++)
      if (!(early >> j & 1)) *reinterpret_cast<uint2*>(in_tile(j)) = {out[0][j], out[1][j]};
    if (early) wait_copy_groups<0>();
    shared_is_written();
    turns.u_there[i % 2].arrive();
    if (silent == 0) {
#pragma unroll
      for (int j = 0; j < P::kOwn; j++)
        *reinterpret_cast<uint2*>(u + j * s.u_stride) = {out[0][j], out[1][j]};
    } else {
#pragma unroll
      for (int j = 0; j < P::kOwn; j++)
        if (!(silent >> j & 1)) *reinterpret_cast<uint2*>(u + j * s.u_stride) = {out[0][j], out[1][j]};
    }
    u += P::kChannels;
    x += i % 2 ? -P::kX : P::kX;
    tile += i % 2 ? -P::kU : P::kU;
    taps += (i % 3 == 2 ? -2 * P::kCoefficients : P::kCoefficients) / 4;
  }
}

template <class T, int N>
__device__ __forceinline__ void multiply_tile(const ConvMatmul<T>& s, uint8_t* memory, ConvMatmulTurns& turns) {
  using P = ConvMatmulPlan<N>;
  const int tid = threadIdx.x;
  const int64_t first = blockIdx.x * int64_t{P::kTokens};
  const uint32_t shared = in_shared(memory);
  const auto meet = [] { asm volatile("bar.sync 1, 128;" ::: "memory"); };

  // x: a thread takes every eighth row, those from `low` to before `high` are there.
  const int x_row = tid / 16;
  const T* const x = s.x + (first - P::kBack + x_row) * s.x_stride + tid % 16 * 8;
  const int64_t left = s.sequences.tokens - first + P::kBack;
  const int low = first == 0 ? P::kBack - x_row : 0,
            high = static_cast<int>(left < P::kTokens + P::kBack ? left : P::kTokens + P::kBack) - x_row;
  const auto fetch_x = [&](int i) {
    if (i >= s.steps) return;
    const T* from = x + i * P::kChannels;
    const uint32_t to = shared + P::kAtX + i % 2 * P::kX + x_row * P::kXRow + tid % 16 * 16;
#pragma unroll
    for (int r = 0; r < P::kTokens + P::kBack; r += 8, from += 8 * s.x_stride)
      if (r >= low && r < high) copy_sixteen(to + r * P::kXRow, from);
    // The taps of channels 4 lane + k lie side by side for each k.
    const uint32_t taps = shared + P::kAtTaps + i % 3 * P::kCoefficients;
    copy_sixteen(taps + (tid % 4 * 32 + tid / 4) * 16, s.taps + (i * P::kChannels + tid) * s.taps_stride);
    if (s.bias && tid < P::kChannels / 4)
      copy_sixteen(taps + P::kTaps + tid * 16, s.bias + i * P::kChannels + 4 * tid);
    arrive_copied(turns.x_there[i % 2]);
  };
  // W: half a step, every sixteenth row.
  const int w_row = tid / 8;
  const T* const w = s.w + w_row * s.w_stride + tid % 8 * 8;
  const auto fetch_w = [&](int half) {
    if (half >= 2 * s.steps) return;
    const T* from = w + half * P::kHalf;
    const uint32_t to =
        shared + P::kAtW + half % P::kStages * P::kW + w_row * 128 + (tid % 8 ^ w_row % 8) * 16;
#pragma unroll
    for (int r = 0; r < N; r += 16, from += 16 * s.w_stride)
      if (r + w_row < s.n) copy_sixteen(to + r * 128, from);
  };
#pragma unroll
  for (int half = 0; half < P::kStages - 1; half++) {
    if (half < 2) fetch_x(half);
    fetch_w(half);
    end_copy_group();
  }

  float c[2][2][N / 4] = {};  // halves of the tokens, of n
  for (int half = 0; half < 2 * s.steps; half++) {
    const int i = half / 2;
    wait_for_products();
    if (half % 2 == 0) {
      if (i > 0) turns.multiplied[(i - 1) % 2].arrive();
      turns.x_read[i % 2].pass(i / 2);
      fetch_x(i + 2);
      turns.u_there[i % 2].pass(i / 2);
    }
    wait_copy_groups<P::kStages - 2>();
    shared_is_written();
    meet();  // this half of W is there, and the one before is multiplied
    begin_products();
    const uint32_t a = shared + i % 2 * P::kU + half % 2 * P::kTile,
                   b = shared + P::kAtW + half % P::kStages * P::kW;
#pragma unroll
    for (int k = 0; k < P::kHalf / 16; k++)
#pragma unroll
      for (int part = 0; part < 4; part++)
        multiply(c[part / 2][part % 2], tile_at(a + part / 2 * P::kTile / 2 + 32 * k),
                 tile_at(b + part % 2 * P::kW / 2 + 32 * k), T{});
    end_products();
    fetch_w(half + P::kStages - 1);
    end_copy_group();
  }
  wait_for_products();

  const int row = tid / 32 * 16 + tid % 32 / 4, column = tid % 4 * 2;
#pragma unroll
  for (int part = 0; part < 4; part++) {  // halves of the tokens, of eights of them
    const int64_t t = first + part / 2 * 64 + part % 2 * 8 + row;
    if (t >= s.sequences.tokens) continue;
    T* const y = s.y + t * s.y_stride + column;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
      if (8 * j + column < s.n) {
        const float* const two = &c[part / 2][j / (N / 16)][j % (N / 16) * 4 + part % 2 * 2];
        *reinterpret_cast<uint32_t*>(y + 8 * j) = rounded_pair<T>(two[0], two[1]);
      }
  }
}

#endif

template <class T, int N>
__global__ void __launch_bounds__(ConvMatmulPlan<N>::kThreads, 1)
    convolve_and_multiply(const __grid_constant__ ConvMatmul<T> s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using P = ConvMatmulPlan<N>;
  extern __shared__ __align__(1024) uint8_t conv_matmul_memory[];
  uint8_t* const memory = conv_matmul_memory;
  ConvMatmulTurns& turns = *reinterpret_cast<ConvMatmulTurns*>(memory + P::kAtTurns);
  let_next_start();
  if (threadIdx.x < 2) {
    turns.x_there[threadIdx.x].make(P::kMultipliers);
    turns.x_read[threadIdx.x].make(P::kConvolvers);
    turns.u_there[threadIdx.x].make(P::kConvolvers);
    turns.multiplied[threadIdx.x].make(P::kMultipliers);
  }
  if (!s.bias && threadIdx.x < 3 * P::kChannels) {
    uint8_t* const coefficients = memory + P::kAtTaps + threadIdx.x / P::kChannels * P::kCoefficients;
    reinterpret_cast<float*>(coefficients + P::kTaps)[threadIdx.x % P::kChannels] = 0.0f;
  }
  wait_for_previous();
  __syncthreads();
  if (threadIdx.x < P::kMultipliers) {
    take_registers<P::kMany>();
    multiply_tile<T, N>(s, memory, turns);
  } else {
    leave_registers<P::kFew>();
    convolve_tile<T, N>(s, memory, turns);
  }
#else
  __trap();
#endif
}

}  // namespace ss::cuda
