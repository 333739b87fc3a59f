// y = x W^T for up to 16 rows of x, both bf16 or both f16, as a stream of W through registers. Each
// weight is read once; a block takes groups of 8 R rows of W in turn, its warps 64 columns of k in
// turn, and the warps' sums are added in their order. So a sum's order depends on k alone. While one
// piece is multiplied the next is on its way, and before the kernels ahead have ended the first
// groups are asked into the L2. The tensor cores multiply 16 rows of x, of which the absent ones are
// copies of the last; they have ten times the speed that memory asks for.
#pragma once
#include "card.h"
#include "device/mma.cuh"
#include "matmul_few.cuh"

namespace ss::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kWarpColumns = 64;                     // that a warp takes at a time
constexpr int kColumns = kWarps * kWarpColumns;      // all of them
constexpr int kStreamThreads = 32 * kWarps;
constexpr int kAhead = 16;  // rows of W that a block asks into the L2 before it may start: more
                            // take bandwidth from the kernel before (48 layers: 1,037 to 1,100 us)

// Eight elements of a row from column `at` on, as pairs; zeros from column k on. Wide: as one
// access, with k a multiple of 8.
template <bool Wide, bool Once, class T>
__device__ inline uint4 load_eight(const T* row, int64_t at, int64_t k) {
  if constexpr (Wide) {
    return load_sixteen<Once>(row + at, at < k);
  } else {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t j = at + 2 * i;
      const uint16_t* bits = reinterpret_cast<const uint16_t*>(row);
      pair[i] =
          (j < k ? bits[j] : 0u) | (j + 1 < k ? static_cast<uint32_t>(bits[j + 1]) << 16 : 0u);
    }
    return {pair[0], pair[1], pair[2], pair[3]};
  }
}

// What a lane has of one piece: 8 R rows of W by U * kColumns columns.
template <int R, int U>
struct Piece {
  uint4 w[U][2][R];
};

// Tall: more than 8 rows of x. U: pieces of kColumns that are under way together.
template <class T, int R, int U, bool Tall, bool Wide>
struct Weights {
  static constexpr int kRows = Tall ? 16 : 8;
  using Sums = float[2][kWarps][kRows][8 * R + 1];

  const Product& p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int64_t groups = (p.n + 8 * R - 1) / (8 * R);

  // By one thread a row, each block its first groups.
  __device__ void prefetch() const {
    if constexpr (Wide)
      for (int i = threadIdx.x; i < kAhead; i += kStreamThreads) {
        const int64_t group = blockIdx.x + i / (8 * R) * int64_t{gridDim.x};
        const int64_t row = group * 8 * R + i % (8 * R);
        if (row >= p.n) break;
        prefetch_weights(static_cast<const T*>(p.w) + row * p.w_stride,
                         static_cast<uint32_t>(least(p.k, 1 << 16) * sizeof(T)));
      }
  }

  __device__ Piece<R, U> load(int64_t group, int64_t k0) const {
    Piece<R, U> piece;
#pragma unroll
    for (int r = 0; r < R; r++) {
      const T* row =
          static_cast<const T*>(p.w) + least(group * 8 * R + 8 * r + g, p.n - 1) * p.w_stride;
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          piece.w[u][h][r] = load_eight<Wide, true>(row, k0 + u * kColumns + 32 * h + 8 * q,
                                                    group < groups ? p.k : 0);
    }
    return piece;
  }

  // x(row, at): eight elements of a row of x. `now`: the block's first piece.
  template <class X>
  __device__ void multiply(Piece<R, U> now, X&& x, Sums& sums) const {
    const int64_t begin = warp * kWarpColumns;
    float c[R][4] = {};
    int64_t k0 = begin;
    for (int64_t group = blockIdx.x, turn = 0; group < groups;) {
      const bool last = k0 - begin + U * kColumns >= p.k;
      const int64_t next_group = last ? group + gridDim.x : group;
      const int64_t next_k0 = last ? begin : k0 + U * kColumns;
      const Piece<R, U> next = load(next_group, next_k0);
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int64_t at = k0 + u * kColumns + 32 * h + 8 * q;
          const uint4 low = x(g, at), high = Tall ? x(g + 8, at) : uint4{};
#pragma unroll
          for (int r = 0; r < R; r++) {
            mma(c[r], low.x, high.x, low.y, high.y, now.w[u][h][r].x, now.w[u][h][r].y, T{});
            mma(c[r], low.z, high.z, low.w, high.w, now.w[u][h][r].z, now.w[u][h][r].w, T{});
          }
        }
      if (last) {
        add_warps(c, group, sums[turn]);
        turn ^= 1;
      }
      now = next;
      group = next_group;
      k0 = next_k0;
    }
  }

  // One barrier a group: the sums of the next one lie elsewhere.
  __device__ void add_warps(float (&c)[R][4], int64_t group,
                            float (&sums)[kWarps][kRows][8 * R + 1]) const {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (Tall || i < 2) sums[warp][g + i / 2 * 8][8 * r + 2 * q + i % 2] = c[r][i];
        c[r][i] = 0;
      }
    __syncthreads();
    for (int i = threadIdx.x; i < p.m * 8 * R; i += kStreamThreads) {
      const int row = i / (8 * R), column = i % (8 * R);
      if (group * 8 * R + column >= p.n) continue;
      float sum = sums[0][row][column];
#pragma unroll
      for (int other = 1; other < kWarps; other++) sum += sums[other][row][column];
      store_as(p, row, group * 8 * R + column, sum);
    }
  }
};

template <class T, int R, int U, bool Tall, bool Wide>
__global__ void __launch_bounds__(kStreamThreads, 2) stream_weights(const Product p) {
  using W = Weights<T, R, U, Tall, Wide>;
  __shared__ typename W::Sums sums;
  const W weights{p};
  let_next_start();
  weights.prefetch();
  wait_for_previous();
  const auto first = weights.load(blockIdx.x, weights.warp * kWarpColumns);
  const T* x = static_cast<const T*>(p.x);
  weights.multiply(
      first,
      [&](int row, int64_t at) {
        return load_eight<Wide, false>(x + least(row, p.m - 1) * p.x_stride, at, p.k);
      },
      sums);
}

// As many blocks as are resident, or fewer: short rows of W take few enough registers for three on a
// multiprocessor (k = 768: 2.6 us instead of 3.4), more of the others run one after another.
template <int R, int U>
unsigned stream_blocks(int64_t n) {
  constexpr int64_t kEach = R == 1 && U == 2 ? 3 : 2;
  const int64_t groups = ceil_div(n, 8 * R), most = kEach * multiprocessors();
  return static_cast<unsigned>(groups < most ? groups : most);
}

template <class T, int R, int U, bool Tall, bool Wide>
void launch_stream(cudaStream_t stream, const Product& p) {
  launch(stream, stream_weights<T, R, U, Tall, Wide>,
         {stream_blocks<R, U>(p.n), unsigned{kStreamThreads}}, p);
}

// More rows of W a block mean less traffic for x, whose rows every block reads; fewer blocks than
// multiprocessors would leave some of those idle.
template <class T>
void multiply_stream(cudaStream_t stream, const Product& p, bool wide) {
  constexpr int64_t kBlocks = 128;
  const bool tall = p.m > 8;
  if (!wide)
    launch_stream<T, 1, 1, true, false>(stream, p);
  else if (tall && p.n >= 32 * kBlocks)
    launch_stream<T, 4, 1, true, true>(stream, p);
  else if (tall && p.n >= 16 * kBlocks)
    launch_stream<T, 2, 1, true, true>(stream, p);
  else if (tall)
    launch_stream<T, 1, 2, true, true>(stream, p);
  else if (p.m > 2 && p.n >= 16 * kBlocks)
    launch_stream<T, 2, 2, false, true>(stream, p);
  else if (p.k <= 2 * kColumns)
    launch_stream<T, 1, 2, false, true>(stream, p);
  else
    launch_stream<T, 1, 4, false, true>(stream, p);
}

}  // namespace
}  // namespace ss::cuda
