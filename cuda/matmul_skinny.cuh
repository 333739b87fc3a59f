// y = x W^T for some tens of rows of x, both bf16 or both f16: more than a stream of W through
// registers serves, too few for tiles of y to fill the card. A block computes 64 x 32 of y on the
// tensor cores from a share of k; the shares of a cluster of blocks are added through their shared
// memory, in their order, which depends on n and k alone. Three stages of 64 columns, two of them on
// their way while one is used; W is asked into the L2 before the kernels ahead have ended.
#pragma once
#include <cooperative_groups.h>

#include "device/mma.cuh"
#include "matmul_few.cuh"

namespace ss::cuda {
namespace {

constexpr int kSkinnyM = 64, kSkinnyN = 32, kSkinnyK = 64, kSkinnyStages = 3;
constexpr int kSkinnyPitch = kSkinnyK + 8;  // rows of 144 bytes share no banks in load_matrices
constexpr int kSkinnyThreads = 128;

template <class T>
__global__ void __launch_bounds__(kSkinnyThreads, 4) skinny_mma(const Product p, int shares) {
#if __CUDA_ARCH__ >= 900
  using Stage = T[kSkinnyM + kSkinnyN][kSkinnyPitch];  // rows of x, then of W
  using Sums = float[kSkinnyM][kSkinnyN + 1];
  __shared__ __align__(16) Stage tile[kSkinnyStages];
  static_assert(sizeof(Sums) <= sizeof tile);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.y * int64_t{kSkinnyM};
  const int64_t column = blockIdx.x / shares * int64_t{kSkinnyN};
  const int share = static_cast<int>(blockIdx.x) % shares;
  const int64_t steps = (p.k + kSkinnyK - 1) / kSkinnyK;
  const int64_t begin = steps * share / shares, end = steps * (share + 1) / shares;

  let_next_start();
  const int64_t from = begin * kSkinnyK, until = least(end * kSkinnyK, p.k);
  if (threadIdx.x < kSkinnyN && column + threadIdx.x < p.n && from < until)
    prefetch_weights(static_cast<const T*>(p.w) + (column + threadIdx.x) * p.w_stride + from,
                     static_cast<uint32_t>(least(until - from, 1 << 16) * sizeof(T)));
  wait_for_previous();

  const auto fetch = [&](int64_t step) {
    if (step < end) {
      constexpr int kChunks = kSkinnyK / 8;  // of 16 bytes, a row
#pragma unroll
      for (int i = 0; i < (kSkinnyM + kSkinnyN) * kChunks / kSkinnyThreads; i++) {
        const int chunk = i * kSkinnyThreads + threadIdx.x;
        const int r = chunk / kChunks, c = chunk % kChunks * 8;
        const bool of_x = r < kSkinnyM;
        const int64_t at = step * kSkinnyK + c, wanted = of_x ? row + r : column + r - kSkinnyM;
        const bool there = at < p.k && wanted < (of_x ? p.m : p.n);
        const T* source = static_cast<const T*>(of_x ? p.x : p.w);
        if (there) source += wanted * (of_x ? p.x_stride : p.w_stride) + at;
        copy_async(&tile[(step - begin) % kSkinnyStages][r][c], source, there);
      }
    }
    end_copy_group();  // an empty one keeps the count
  };

  float c[4][4] = {};  // 16 x 8 of y each
  for (int step = 0; step < kSkinnyStages - 1; step++) fetch(begin + step);
  for (int64_t step = begin; step < end; step++) {
    wait_copy_groups<kSkinnyStages - 2>();
    __syncthreads();  // this step's tile is there, and the one before is read
    fetch(step + kSkinnyStages - 1);
    const Stage& now = tile[(step - begin) % kSkinnyStages];
#pragma unroll
    for (int kk = 0; kk < kSkinnyK; kk += 16) {
      uint32_t a[4], b[2][4];
      load_matrices(a, &now[16 * warp + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < 2; j++)
        load_matrices(b[j], &now[kSkinnyM + 16 * j + lane / 16 * 8 + lane % 8]
                                [kk + lane / 8 % 2 * 8]);
#pragma unroll
      for (int j = 0; j < 4; j++)
        mma(c[j], a[0], a[1], a[2], a[3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
    }
  }

  wait_copy_groups<0>();
  __syncthreads();
  Sums& sums = *reinterpret_cast<Sums*>(tile);
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      sums[16 * warp + e / 2 * 8 + lane / 4][8 * j + lane % 4 * 2 + e % 2] = c[j][e];
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();  // all shares are there
  const int each = kSkinnyM / shares;  // rows that a block of the cluster adds up
  for (int i = threadIdx.x; i < each * kSkinnyN; i += kSkinnyThreads) {
    const int r = share * each + i / kSkinnyN, n = i % kSkinnyN;
    if (row + r >= p.m || column + n >= p.n) continue;
    float sum = 0;
    for (int other = 0; other < shares; other++)
      sum += *cluster.map_shared_rank(&sums[r][n], static_cast<unsigned>(other));
    store_as(p, row + r, column + n, sum);
  }
  cluster.sync();  // no block leaves while another reads from it
#endif
}

// Shares of k, of at least two steps, until there are blocks for every multiprocessor.
inline int skinny_shares(const Product& p) {
  const int64_t tiles = ceil_div(p.n, kSkinnyN), steps = ceil_div(p.k, kSkinnyK);
  int shares = 1;
  while (shares < 8 && tiles * shares < 192 && steps >= 4 * shares) shares *= 2;
  return shares;
}

template <class T>
void multiply_skinny(cudaStream_t stream, const Product& p) {
  const int shares = skinny_shares(p);
  Grid grid{dim3(static_cast<unsigned>(ceil_div(p.n, kSkinnyN) * shares),
                 static_cast<unsigned>(ceil_div(p.m, kSkinnyM))),
            unsigned{kSkinnyThreads}};
  grid.cluster = static_cast<unsigned>(shares);
  launch(stream, skinny_mma<T>, grid, p, shares);
}

}  // namespace
}  // namespace ss::cuda
