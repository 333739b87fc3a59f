// What the way back of a convolution adds to dy: product · matrix, of k columns by k rows, for the tokens of a
// block by 64 channels, on the tensor cores, before they are walked. A warp has 16 of the channels, their part of
// the matrix in registers. The answer lies in shared memory as pairs of T, where the matrix has been before.
#pragma once
#include "mma.cuh"
#include "words.cuh"

namespace ss::cuda {

constexpr int kProductChannels = 64, kProductWarps = 4, kProductTokens = 256 + 3;  // of a block, and what it looks ahead
constexpr int kProductPitch = kProductChannels + 4;
constexpr int kMatrixPitch = kProductChannels + 8;   // rows that share no banks in load_turned

template <class T>
struct ConvProduct {
  const T *left, *matrix;  // [t, k], [k, d]
  int64_t left_stride, matrix_stride;
  int k;  // a multiple of 16

  // Of shared memory, of a block.
  static size_t bytes(int k) {
    const int matrix = k * kMatrixPitch, answer = kProductTokens * kProductPitch;
    return static_cast<size_t>(matrix > answer ? matrix : answer) * sizeof(T);
  }
};

// Where row k of the matrix lies, so that a lane has 8 neighbours of a token's row, or 4 where 16 are left.
__device__ inline int place_of(int k, int rows) {
  const int whole = k / 32 * 32, at = k % 32;
  if (whole + 32 > rows) return whole + at % 4 / 2 * 8 + at / 4 * 2 + at % 2;
  return whole + at % 8 / 4 * 16 + at % 4 / 2 * 8 + at / 8 * 2 + at % 2;
}

// The answer for `tokens` from token `begin` on, of channels from `first` on, to `room`. The whole block.
template <int Steps, class T>
__device__ __forceinline__ void make_product(const ConvProduct<T>& p, int64_t begin, int tokens, int64_t first,
                                             T* room) {
  constexpr int kRow = kProductChannels / 8;  // 16 bytes each
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16, g = lane / 4, q = lane % 4;
  for (int i = threadIdx.x; i < Steps * 16 * kRow; i += 32 * kProductWarps) {
    const int k = i / kRow, c = i % kRow * 8;
    *reinterpret_cast<uint4*>(room + place_of(k, Steps * 16) * kMatrixPitch + c) =
        *reinterpret_cast<const uint4*>(p.matrix + k * p.matrix_stride + first + c);
  }
  __syncthreads();
  uint32_t b[Steps][4];
#pragma unroll
  for (int step = 0; step < Steps; step++)
    load_turned(b[step], room + (step * 16 + lane % 16) * kMatrixPitch + column + lane / 16 * 8);
  __syncthreads();
  // Two rows of a lane, of those that there are.
  struct Rows {
    uint4 one[Steps / 2], two[Steps / 2];
    uint2 last, last_next;
  };
  const T* at = p.left + (begin + g) * p.left_stride;
  const auto fetch = [&](int row, Rows& to) {
    const T* next = at + 8 * p.left_stride;
    const bool has = row < tokens, has_next = row + 8 < tokens;
#pragma unroll
    for (int i = 0; i < Steps / 2; i++) {
      to.one[i] = to.two[i] = uint4{};
      if (has) to.one[i] = *reinterpret_cast<const uint4*>(at + i * 32 + q * 8);
      if (has_next) to.two[i] = *reinterpret_cast<const uint4*>(next + i * 32 + q * 8);
    }
    if constexpr (Steps % 2) {
      to.last = to.last_next = uint2{};
      if (has) to.last = *reinterpret_cast<const uint2*>(at + (Steps - 1) * 16 + q * 4);
      if (has_next) to.last_next = *reinterpret_cast<const uint2*>(next + (Steps - 1) * 16 + q * 4);
    }
    at += 16 * p.left_stride;
  };
  T* to = room + g * kProductPitch + column + 2 * q;
  Rows rows;
  fetch(g, rows);
  // Zeros behind the last token, for who looks ahead.
  for (int row = g; row < kProductTokens + g; row += 16) {
    Rows ahead;
    fetch(row + 16, ahead);
    float sums[2][4] = {};
    const auto multiply = [&](int step, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) {
      mma(sums[0], a0, a1, a2, a3, b[step][0], b[step][1], T{});
      mma(sums[1], a0, a1, a2, a3, b[step][2], b[step][3], T{});
    };
#pragma unroll
    for (int i = 0; i < Steps / 2; i++) {
      multiply(2 * i, rows.one[i].x, rows.two[i].x, rows.one[i].y, rows.two[i].y);
      multiply(2 * i + 1, rows.one[i].z, rows.two[i].z, rows.one[i].w, rows.two[i].w);
    }
    if constexpr (Steps % 2) multiply(Steps - 1, rows.last.x, rows.last_next.x, rows.last.y, rows.last_next.y);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      if (row < kProductTokens) Pack<2>{{sums[j][0], sums[j][1]}}.store(to + 8 * j);
      if (row + 8 < kProductTokens) Pack<2>{{sums[j][2], sums[j][3]}}.store(to + 8 * kProductPitch + 8 * j);
    }
    to += 16 * kProductPitch;
    rows = ahead;
  }
  __syncthreads();
}

}  // namespace ss::cuda
