// Rows of x times the matrices of their experts, x and W both bf16 or both f16, on the tensor cores.
// Tiles are laid over the experts' rows on the device, at most places / kM + experts of them, so that
// no count goes through the host: a block finds its own, and leaves where there is none. It computes
// kM x kN of y from tiles of kM rows of x, gathered by token, and kN rows of W, 64 columns deep, of
// which several stages are under way. In shared memory a row is 128 bytes, its 16-byte chunks
// exchanged by the row's number, so that neither copies nor load_matrices meet in a bank.
//
// plain: y = x W^T + bias. up: y = f(gate) up, the tile's rows of W half gates and half ups of the same columns, so that one
// thread has both. down: y[token] = weight (x W^T + bias), where a token has one expert.
#pragma once
#include "device/fault.cuh"
#include "device/gate.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "launch.cuh"

namespace ss::cuda {
namespace {

struct Grouped {
  const void *x, *w;           // [t, d], [e, n, d]
  const float* bias;           // [e, n] or null
  const int32_t *order, *offsets;
  const int32_t* place;        // [t]; this and the next for down only
  const float* weights;        // [t, 1]
  void* y;                     // plain and up: [places, h]; down: [t, n]
  int64_t t, e, n, d, h, places, k;
  int64_t x_stride, w_stride, bias_stride, weights_stride;
  int kind;
  Fault* fault;

  // The assignment in a place. What is out of range is reported, and number 0 taken instead.
  __device__ int64_t assignment(int64_t place) const {
    const int32_t at = order[place];
    if (at >= 0 && at < places) return at;
    fault->report(place, at, places - 1);
    return 0;
  }
  __device__ int64_t first(int64_t expert) const {
    const int64_t at = offsets[expert];
    return at < 0 ? 0 : at < places ? at : places;
  }
};

enum class Step { plain, up, gated_up, down };

// M x N of y a block, its warps laid out kWarpsM x kWarpsN over it.
template <int M, int N, int WarpsM, int WarpsN, int Stages>
struct Shape {
  static constexpr int kM = M, kN = N, kWarpsN = WarpsN, kStages = Stages;
  static constexpr int kThreads = 32 * WarpsM * WarpsN;
  static constexpr int kDepth = 64, kChunks = kDepth / 8;  // columns; 16-byte chunks of a row
  static constexpr int kWarpM = M / WarpsM, kWarpN = N / WarpsN;
  static constexpr int kBytes = Stages * (M + N) * kDepth * 2;
};

struct Rows {
  int64_t expert, begin, end;  // begin: of the tile; end: of the expert
};

// Rows of tile number `tile`, by a warp: false where there are fewer.
__device__ inline bool find_rows(const Grouped& g, int64_t tile, int height, Rows* found) {
  const int lane = threadIdx.x % 32;
  for (int64_t e0 = 0; e0 < g.e; e0 += 32) {
    const int64_t expert = e0 + lane;
    const int64_t begin = expert < g.e ? g.first(expert) : 0;
    const int64_t end = expert < g.e ? g.first(expert + 1) : 0;
    const int tiles = end > begin ? static_cast<int>((end - begin + height - 1) / height) : 0;
    int through = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, through, step);
      if (lane >= step) through += other;
    }
    const unsigned mine = __ballot_sync(0xffffffffu, tile < through);
    if (mine) {
      const int owner = __ffs(mine) - 1;
      const int before = __shfl_sync(0xffffffffu, through - tiles, owner);
      found->expert = e0 + owner;
      found->begin = __shfl_sync(0xffffffffu, begin, owner) + (tile - before) * height;
      found->end = __shfl_sync(0xffffffffu, end, owner);
      return true;
    }
    tile -= __shfl_sync(0xffffffffu, through, 31);
  }
  return false;
}

// Zeros in `columns` of y where there is nothing to add up: places after the last expert's, or
// tokens without an expert.
template <Step kStep, class T>
__device__ void clear_rest(const Grouped& g, int64_t first_column, int columns) {
  const int64_t begin = kStep == Step::down ? 0 : g.first(g.e);
  for (int64_t i = begin + threadIdx.x; i < (kStep == Step::down ? g.t : g.places); i += blockDim.x) {
    if (kStep == Step::down && g.place[i] >= 0) continue;
    for (int64_t j = first_column; j < first_column + columns && j < g.h; j++)
      from_float(static_cast<T*>(g.y)[i * g.h + j], 0.0f);
  }
}

template <class S, Step kStep, class T>
__global__ void __launch_bounds__(S::kThreads) expert_tile(const Grouped g) {
  extern __shared__ uint4 memory[];
  __shared__ int64_t tokens[S::kM];  // down: where the tile's rows go
  constexpr bool kGated = kStep == Step::gated_up;
  constexpr int kOut = kGated ? S::kN / 2 : S::kN, kWarpOut = kGated ? S::kWarpN / 2 : S::kWarpN;
  constexpr int kLoaded = S::kThreads / S::kChunks;  // rows that the block loads at once
  constexpr int kLoadsX = S::kM / kLoaded, kLoadsW = S::kN / kLoaded;
  constexpr int kStageRows = S::kM + S::kN;
  static_assert(S::kM % kLoaded == 0 && S::kN % kLoaded == 0 && kLoaded % 8 == 0);
  let_next_start();
  wait_for_previous();
  const int64_t first_column = blockIdx.x * int64_t{kOut};
  // Never anyone's: there are fewer tiles than launch_tile() allows for.
  if (blockIdx.y + 1 == gridDim.y) return clear_rest<kStep, T>(g, first_column, kOut);
  Rows rows;
  if (!find_rows(g, blockIdx.y, S::kM, &rows)) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int steps = static_cast<int>((g.d + S::kDepth - 1) / S::kDepth);

  // What this thread copies: one chunk of a row in kLoaded, of each tile.
  const int chunk = threadIdx.x % S::kChunks, own = threadIdx.x / S::kChunks;
  const T *from_x[kLoadsX], *from_w[kLoadsW];
  uint32_t there = 0;  // bits of from_x, then of from_w
#pragma unroll
  for (int i = 0; i < kLoadsX; i++) {
    const int64_t place = rows.begin + i * kLoaded + own;
    const bool is = place < rows.end;
    int64_t row = is ? place : 0;
    if (is && kStep != Step::down && (kStep != Step::plain || g.k > 0))
      row = g.assignment(place) / g.k;
    from_x[i] = static_cast<const T*>(g.x) + row * g.x_stride + chunk * 8;
    there |= static_cast<uint32_t>(is) << i;
  }
#pragma unroll
  for (int i = 0; i < kLoadsW; i++) {
    const int r = i * kLoaded + own, in = r % S::kWarpN;
    const int64_t column = first_column + r / S::kWarpN * kWarpOut + in % kWarpOut;
    const bool is = column < g.h;
    const int64_t row = (is ? column : 0) + in / kWarpOut * g.h;
    from_w[i] = static_cast<const T*>(g.w) + rows.expert * g.w_stride + row * g.d + chunk * 8;
    there |= static_cast<uint32_t>(is) << (kLoadsX + i);
  }
  if (kStep == Step::down)
    for (int i = threadIdx.x; i < S::kM; i += S::kThreads)
      tokens[i] = rows.begin + i < rows.end ? g.assignment(rows.begin + i) : -1;

  const uint4* to = memory + own * S::kChunks + (chunk ^ own % 8);
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int64_t k0 = int64_t{step} * S::kDepth;
      const bool inside = k0 + chunk * 8 < g.d;
      uint4* stage = const_cast<uint4*>(to) + step % S::kStages * kStageRows * S::kChunks;
#pragma unroll
      for (int i = 0; i < kLoadsX; i++) {
        const bool is = inside && (there >> i & 1);
        copy_async(stage + i * kLoaded * S::kChunks, is ? from_x[i] + k0 : from_x[i] - chunk * 8, is);
      }
#pragma unroll
      for (int i = 0; i < kLoadsW; i++) {
        const bool is = inside && (there >> (kLoadsX + i) & 1);
        copy_async(stage + (S::kM + i * kLoaded) * S::kChunks,
                   is ? from_w[i] + k0 : from_w[i] - chunk * 8, is);
      }
    }
    end_copy_group();  // an empty one keeps the count
  };

  constexpr int kI = S::kWarpM / 16, kJ = S::kWarpN / 8;
  static_assert(kJ % 2 == 0);
  float c[kI][kJ][4] = {};
  const int x0 = warp / S::kWarpsN * S::kWarpM, w0 = warp % S::kWarpsN * S::kWarpN;
  const int row_x = x0 + lane % 16, row_w = S::kM + w0 + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < S::kStages - 1; step++) fetch(step);
  for (int step = 0; step < steps; step++) {
    wait_copy_groups<S::kStages - 2>();
    __syncthreads();  // this step's tile is there, and the one before is read
    fetch(step + S::kStages - 1);
    const uint4* now = memory + step % S::kStages * kStageRows * S::kChunks;
#pragma unroll
    for (int kk = 0; kk < S::kChunks; kk += 2) {
      uint32_t a[kI][4], b[kJ / 2][4];
#pragma unroll
      for (int i = 0; i < kI; i++)
        load_matrices(a[i], now + (row_x + 16 * i) * S::kChunks + ((kk + lane / 16) ^ lane % 8));
#pragma unroll
      for (int j = 0; j < kJ / 2; j++)
        load_matrices(b[j], now + (row_w + 16 * j) * S::kChunks + ((kk + lane / 8 % 2) ^ lane % 8));
#pragma unroll
      for (int i = 0; i < kI; i++)
#pragma unroll
        for (int j = 0; j < kJ; j++)
          mma(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
              b[j / 2][j % 2 * 2 + 1], T{});
    }
  }

  const float* bias = g.bias ? g.bias + rows.expert * g.bias_stride : nullptr;
  constexpr int kOwn = kGated ? kJ / 2 : kJ;
#pragma unroll
  for (int i = 0; i < kI; i++)
#pragma unroll
    for (int v = 0; v < 4; v += 2) {
      const int r = x0 + 16 * i + v / 2 * 8 + lane / 4;
      if (rows.begin + r >= rows.end) continue;
      const int64_t row = kStep == Step::down ? tokens[r] : rows.begin + r;
      const float weight = kStep == Step::down ? g.weights[row * g.weights_stride] : 0.0f;
      T* y = static_cast<T*>(g.y) + row * g.h;
#pragma unroll
      for (int j = 0; j < kOwn; j++) {
        const int64_t column =
            first_column + warp % S::kWarpsN * kWarpOut + 8 * j + lane % 4 * 2;
        Raw<T, 2> pair;
#pragma unroll
        for (int p = 0; p < 2; p++) {
          float sum = c[i][j][v + p];
          if (column + p >= g.h) continue;
          if (bias) sum += bias[column + p];
          if constexpr (kStep == Step::down) {
            sum *= weight;
          } else if constexpr (kStep != Step::plain) {
            sum = activated_briefly(sum, g.kind);
            if constexpr (kGated) {
              float factor = c[i][kOwn + j][v + p];
              if (bias) factor += bias[g.h + column + p];
              sum *= factor;
            }
          }
          from_float(pair.item[p], sum);
        }
        // h is a multiple of 8.
        if (column < g.h) *reinterpret_cast<Raw<T, 2>*>(y + column) = pair;
      }
    }
}

template <class S, Step kStep, class T>
void launch_tile(cudaStream_t stream, const Grouped& g) {
  constexpr int kOut = kStep == Step::gated_up ? S::kN / 2 : S::kN;
  const int64_t columns = (g.h + kOut - 1) / kOut, tiles = (g.places + S::kM - 1) / S::kM + g.e;
  cudaFuncSetAttribute(expert_tile<S, kStep, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       S::kBytes);
  launch(stream, expert_tile<S, kStep, T>,
         {dim3(static_cast<unsigned>(columns), static_cast<unsigned>(tiles)),
          dim3(S::kThreads), size_t{S::kBytes}},
         g);
}

}  // namespace
}  // namespace ss::cuda
