// matmul of many rows of x without cuBLASLt. Blocks of threads compute tiles of y from tiles of x
// and W in shared memory. Every element is one sum over k in its own order, whatever its place in a
// tile.
//
// tile_mma (x and W both bf16 or both f16, 16-byte rows): 64 x 128 of y a block, 32 x 64 a warp, on
// the tensor cores; three stages of 32 columns, two of them on their way while one is used.
// tile_fma (any types): 64 x 64 of y a block, 4 x 4 a thread, in f32.
#pragma once
#include "device/mma.cuh"
#include "matmul_few.cuh"

namespace ss::cuda {
namespace {

constexpr int kTileM = 64, kTileN = 128, kTileK = 32, kStages = 3;
constexpr int kPitch = kTileK + 8;  // elements; rows of 80 bytes share no banks in load_matrices

template <class T>
__global__ void __launch_bounds__(128) tile_mma(const Product p, int64_t tiles_n) {
  let_next_start();
  wait_for_previous();
  __shared__ __align__(16) T tile[kStages][kTileM + kTileN][kPitch];  // rows of x, then of W
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x / tiles_n * kTileM, column = blockIdx.x % tiles_n * kTileN;
  const int64_t steps = (p.k + kTileK - 1) / kTileK;

  const auto fetch = [&](int64_t step) {
    if (step < steps) {
      constexpr int kChunks = kTileK / 8;  // of 16 bytes, a row
#pragma unroll
      for (int i = 0; i < (kTileM + kTileN) * kChunks / 128; i++) {
        const int chunk = i * 128 + threadIdx.x, r = chunk / kChunks, c = chunk % kChunks * 8;
        const bool of_x = r < kTileM;
        const int64_t at = step * kTileK + c, wanted = of_x ? row + r : column + r - kTileM;
        const bool there = at < p.k && wanted < (of_x ? p.m : p.n);
        const T* from = static_cast<const T*>(of_x ? p.x : p.w);
        if (there) from += wanted * (of_x ? p.x_stride : p.w_stride) + at;
        copy_async(&tile[step % kStages][r][c], from, there);
      }
    }
    end_copy_group();  // an empty one keeps the count
  };

  float c[2][8][4] = {};  // 16 x 8 of y each
  const int x0 = warp / 2 * 32, w0 = kTileM + warp % 2 * 64;
  for (int step = 0; step < kStages - 1; step++) fetch(step);
  for (int64_t step = 0; step < steps; step++) {
    wait_copy_groups<kStages - 2>();
    __syncthreads();  // this step's tile is there, and the one before is read
    fetch(step + kStages - 1);
    const auto& now = tile[step % kStages];
#pragma unroll
    for (int kk = 0; kk < kTileK; kk += 16) {
      uint32_t a[2][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        load_matrices(a[i], &now[x0 + 16 * i + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < 4; j++)
        load_matrices(b[j], &now[w0 + 16 * j + lane / 16 * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
          mma(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
              b[j / 2][j % 2 * 2 + 1], T{});
    }
  }

#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int64_t to_row = row + x0 + 16 * i + e / 2 * 8 + lane / 4;
        const int64_t to_column = column + w0 - kTileM + 8 * j + lane % 4 * 2 + e % 2;
        if (to_row < p.m && to_column < p.n) store_as(p, to_row, to_column, c[i][j][e]);
      }
}

template <class X, class W>
__global__ void __launch_bounds__(256) tile_fma(const Product p, int64_t tiles_n) {
  let_next_start();
  wait_for_previous();
  constexpr int kSide = 64, kDepth = 16;
  __shared__ __align__(16) float xs[kDepth][kSide + 4], ws[kDepth][kSide + 4];
  const int64_t row = blockIdx.x / tiles_n * kSide, column = blockIdx.x % tiles_n * kSide;
  // As a loader: four neighbours along k of one row; as a worker: 4 x 4 of y.
  const int r = threadIdx.x / 4, c = threadIdx.x % 4 * 4, y0 = threadIdx.x / 16 * 4,
            y1 = threadIdx.x % 16 * 4;
  const X* x = static_cast<const X*>(p.x) + least(row + r, p.m - 1) * p.x_stride;
  const W* w = static_cast<const W*>(p.w) + least(column + r, p.n - 1) * p.w_stride;

  float next_x[4], next_w[4], sums[4][4] = {};
  const auto fetch = [&](int64_t k0) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const bool there = k0 + c + j < p.k;
      next_x[j] = there ? to_float(x[k0 + c + j]) : 0.0f;
      next_w[j] = there ? to_float(w[k0 + c + j]) : 0.0f;
    }
  };
  fetch(0);
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    __syncthreads();  // the tiles before are read
#pragma unroll
    for (int j = 0; j < 4; j++) {
      xs[c + j][r] = next_x[j];
      ws[c + j][r] = next_w[j];
    }
    __syncthreads();
    fetch(k0 + kDepth);
#pragma unroll
    for (int kk = 0; kk < kDepth; kk++) {
      const Pack<4> a = Pack<4>::load(&xs[kk][y0]), b = Pack<4>::load(&ws[kk][y1]);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a.item[i], b.item[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (row + y0 + i < p.m && column + y1 + j < p.n)
        store_as(p, row + y0 + i, column + y1 + j, sums[i][j]);
}

template <class T>
void multiply_tile_mma(cudaStream_t stream, const Product& p) {
  const int64_t tiles_n = ceil_div(p.n, kTileN), blocks = ceil_div(p.m, kTileM) * tiles_n;
  launch(stream, tile_mma<T>, {static_cast<unsigned>(blocks), 128}, p, tiles_n);
}

template <class X, class W>
void multiply_tile_fma(cudaStream_t stream, const Product& p) {
  const int64_t tiles_n = ceil_div(p.n, 64), blocks = ceil_div(p.m, 64) * tiles_n;
  launch(stream, tile_fma<X, W>, {static_cast<unsigned>(blocks), 256}, p, tiles_n);
}

}  // namespace
}  // namespace ss::cuda
