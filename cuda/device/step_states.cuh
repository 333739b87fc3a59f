// The second kernel of a step between in_proj and out_proj for many sequences of a published model, after
// step_shares.cuh: dbc from its shares, delta, the states and the gate. A block has 1/16 of the channels, 16 a
// warp, and some sequences. All that does not depend on the kernel before is asked for before that has
// ended: states by copies of each thread's own 8, further ones as those are done with. From dbc on warps
// do not wait for each other.
#pragma once
#include "mamba_step.cuh"
#include "mamba_step_update.cuh"
#include "step_shares.cuh"

namespace ss::cuda {

constexpr int kStateBlocks = 16;  // of a sequence
constexpr int kStateRows = 2;     // whose states a thread advances together

// Of a model 128 * Warps wide.
template <int Warps>
struct StateSizes {
  static constexpr int threads = 32 * Warps, channels = 16 * Warps, r = 8 * Warps, k = r + 2 * kStates;
  static constexpr int rank_pitch = r / 16 % 2 == 1 ? r : r + 16;  // what keeps banks apart
  static constexpr int dt_pitch = 20, steps = r / 16;
  static constexpr int share_channels = Warps % 8 == 0 ? 128 : Warps == 20 ? 160 : 96;  // of a block there
  static constexpr int shares = 256 * Warps / (share_channels * kShareBlocks);
};

// Of `rows` sequences of a block, a multiple of kStateRows, and `depth` such multiples that are under way.
template <class T, class S, int Warps>
struct StatesMemory {
  using Size = StateSizes<Warps>;
  char* ring;   // [depth][kStateRows][threads] of a thread's states
  float* dt;    // [warps][rows][dt_pitch]
  float* coef;  // [rows][32]: B, C
  T *u, *z;     // [warps][rows][16]
  T* rank;      // [rows, or some more][rank_pitch]: what dt_proj is given
  int* slot;    // [rows]
  char* end;

  __host__ __device__ StatesMemory(int rows, int depth, void* memory) {
    ring = static_cast<char*>(memory);
    dt = reinterpret_cast<float*>(ring + depth * kStateRows * Size::threads * 8 * sizeof(S));
    coef = dt + Warps * rows * Size::dt_pitch;
    u = reinterpret_cast<T*>(coef + rows * 2 * kStates);
    z = u + Size::channels * rows;
    rank = z + Size::channels * rows;
    slot = reinterpret_cast<int*>(rank + (rows + 7) / 8 * 8 * Size::rank_pitch);
    end = reinterpret_cast<char*>(slot + rows);
  }
  static int bytes(int rows, int depth) {
    char* const start = reinterpret_cast<char*>(1024);
    return static_cast<int>(StatesMemory(rows, depth, start).end - start);
  }
};

// dbc of a block's sequences: two lanes add up four columns of one, each half of the shares.
template <class T, class S, int Warps>
__device__ __forceinline__ void add_shares(const Step<T>& s, const StatesMemory<T, S, Warps>& shared,
                                           const float* shares, int first_row, int rows, bool writes) {
  using Size = StateSizes<Warps>;
  constexpr int kQuads = Size::k / 4, kItems = Size::threads / 2, kHalf = (Size::shares + 1) / 2;
  constexpr int kAtOnce = Warps == 16 ? 5 : 3;
  const int from = static_cast<int>(threadIdx.x) % 2 * kHalf;
  const int64_t apart = static_cast<int64_t>(s.count) * Size::k;
#pragma unroll 1
  for (int begin = static_cast<int>(threadIdx.x) / 2; begin < (rows * kQuads + 15) / 16 * 16;
       begin += kAtOnce * kItems) {
    float4 some[kAtOnce][kHalf];
#pragma unroll
    for (int e = 0; e < kAtOnce; e++) {
      const int i = begin + e * kItems;
      const float* at = shares + from * apart + static_cast<int64_t>(first_row) * Size::k + i * 4;
#pragma unroll
      for (int j = 0; j < kHalf; j++) {
        some[e][j] = {};
        if (i < rows * kQuads && from + j < Size::shares)
          some[e][j] = __ldcg(reinterpret_cast<const float4*>(at + j * apart));
      }
    }
#pragma unroll
    for (int e = 0; e < kAtOnce; e++) {
      float4 all = some[e][0];
#pragma unroll
      for (int j = 1; j < kHalf; j++)
        all.x += some[e][j].x, all.y += some[e][j].y, all.z += some[e][j].z, all.w += some[e][j].w;
      all.x += __shfl_xor_sync(0xffffffffu, all.x, 1), all.y += __shfl_xor_sync(0xffffffffu, all.y, 1);
      all.z += __shfl_xor_sync(0xffffffffu, all.z, 1), all.w += __shfl_xor_sync(0xffffffffu, all.w, 1);
      const int i = begin + e * kItems, row = i / kQuads, column = i % kQuads * 4;
      if (i >= rows * kQuads || threadIdx.x % 2 != 0) continue;
      Raw<T, 4> kept;
      from_float(kept.item[0], all.x), from_float(kept.item[1], all.y);
      from_float(kept.item[2], all.z), from_float(kept.item[3], all.w);
      if (writes) *reinterpret_cast<Raw<T, 4>*>(s.dbc + (first_row + row) * s.dbc_stride + column) = kept;
      if (column < Size::r)
        *reinterpret_cast<Raw<T, 4>*>(shared.rank + row * Size::rank_pitch + column) = kept;
      else
        *reinterpret_cast<float4*>(shared.coef + row * 2 * kStates + column - Size::r) = {
            to_float(kept.item[0]), to_float(kept.item[1]), to_float(kept.item[2]), to_float(kept.item[3])};
    }
  }
}

// dt of a warp's 16 channels, the first of them `first`, to `dt`; 16 sequences together.
template <class T, class S, int Warps>
__device__ __forceinline__ void project_dt(const Step<T>& s, const StatesMemory<T, S, Warps>& shared, float* dt,
                                           const uint2 (&weight)[StateSizes<Warps>::steps][2],
                                           const float (&bias)[2], int rows) {
  using Size = StateSizes<Warps>;
  constexpr int kEights = 2;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
  for (int begin = 0; begin < rows; begin += 8 * kEights) {
    float c[kEights][4] = {};
#pragma unroll
    for (int i = 0; i < Size::steps; i++)
#pragma unroll
      for (int e = 0; e < kEights; e++) {
        const int row = begin + 8 * e < rows ? begin + 8 * e : begin;
        const T* b = shared.rank + (row + g) * Size::rank_pitch + i * 16 + q * 4;
        const uint2 v = *reinterpret_cast<const uint2*>(b);
        mma(c[e], weight[i][0].x, weight[i][1].x, weight[i][0].y, weight[i][1].y, v.x, v.y, T{});
      }
#pragma unroll
    for (int e = 0; e < 4 * kEights; e++) {
      const int row = begin + e / 4 * 8 + 2 * q + e % 2, half = e % 4 / 2;
      if (row < rows)
        dt[row * Size::dt_pitch + g + 8 * half] = softplus(rounded(c[e / 4][e % 4], T{}) + bias[half]);
    }
  }
}

template <class T, class S, int Warps, int Depth>
__global__ void __maxnreg__(Warps == 16 ? 124 : Warps > 16 ? 96 : 80)
    step_states(const __grid_constant__ Step<T> s, const float* shares, int most_rows) {
  using Size = StateSizes<Warps>;
  constexpr int kBytes = 8 * sizeof(S), kPieces = kBytes / 16;
  extern __shared__ float4 memory[];
  const StatesMemory<T, S, Warps> shared(most_rows, Depth, memory);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  const int block = static_cast<int>(blockIdx.x) % kStateBlocks;
  const int first_row = static_cast<int>(blockIdx.x) / kStateBlocks * most_rows;
  const int rows = s.count - first_row < most_rows ? s.count - first_row : most_rows;
  const int first = block * Size::channels + warp * 16, part = thread % 2, channel = first + lane / 2;

  // step_shares, the kernel before, lets this one start when all before it have ended: what it does not
  // write itself may be read, past the L1.
  if (thread < most_rows) {
    const int own = thread < rows ? __ldcg(s.slots + first_row + thread) : -1;
    shared.slot[thread] = own < s.pool ? own : -1;
  }
  uint2 weight[Size::steps][2];
  const T* of_rank = s.dt_weight + (first + g) * Size::r + q * 4;
#pragma unroll
  for (int i = 0; i < Size::steps; i++) {
    weight[i][0] = __ldcg(reinterpret_cast<const uint2*>(of_rank + i * 16));
    weight[i][1] = __ldcg(reinterpret_cast<const uint2*>(of_rank + 8 * Size::r + i * 16));
  }
  const float4* of_A = reinterpret_cast<const float4*>(s.A) + channel * (kStates / 4);
  const float4 low = __ldcg(of_A + Share<S>::quad(0, part)), high = __ldcg(of_A + Share<S>::quad(1, part));
  const float bias[2] = {__ldcg(s.dt_bias + first + g), __ldcg(s.dt_bias + first + g + 8)};
  const float D = __ldcg(s.D + channel);
  __syncthreads();
  T* const own_u = shared.u + warp * most_rows * 16;
  T* const own_z = shared.z + warp * most_rows * 16;
  float* const own_dt = shared.dt + warp * most_rows * Size::dt_pitch;
  char* const own_ring = shared.ring + thread * kBytes;
  for (int i = lane; i < 2 * rows; i += 32)
    copy_async(own_z + i * 8, s.xz + (first_row + i / 2) * s.xz_stride + s.d + first + i % 2 * 8, true);
  const auto ask = [&](int step) {
#pragma unroll
    for (int j = 0; j < kStateRows; j++) {
      const int row = step * kStateRows + j;
      if (row >= most_rows) break;
      const int slot = shared.slot[row];
      const S* from = s.template states<S>(slot < 0 ? 0 : slot) + channel * kStates;
      char* to = own_ring + (step % Depth * kStateRows + j) * (Size::threads * kBytes);
#pragma unroll
      for (int i = 0; i < kPieces; i++)
        copy_async(to + i * 16, reinterpret_cast<const uint4*>(from) + (kPieces == 2 ? 2 * i + part : part),
                   slot >= 0);
    }
    end_copy_group();
  };
#pragma unroll 1
  for (int step = 0; step < Depth; step++) ask(step);

  wait_for_previous();
  let_next_start();
  for (int i = lane; i < 2 * rows; i += 32)
    copy_async(own_u + i * 8, s.u + (first_row + i / 2) * s.u_stride + first + i % 2 * 8, true);
  end_copy_group();
  add_shares(s, shared, shares, first_row, rows, block == 0);
  __syncthreads();
  project_dt(s, shared, own_dt, weight, bias, rows);
  const Share<S> A = {low.x * kLog2e,  low.y * kLog2e,  low.z * kLog2e,  low.w * kLog2e,
                      high.x * kLog2e, high.y * kLog2e, high.z * kLog2e, high.w * kLog2e};
  wait_copy_groups<0>();
  __syncwarp();

#pragma unroll 1
  for (int step = 0; step * kStateRows < rows; step++) {
    Kept<S> kept[kStateRows];
    wait_copy_groups<Depth - 1>();
#pragma unroll
    for (int j = 0; j < kStateRows; j++) {
      const char* from = own_ring + (step % Depth * kStateRows + j) * (Size::threads * kBytes);
#pragma unroll
      for (int i = 0; i < kPieces; i++) kept[j].word[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    float sum[kStateRows];
    Share<S> h[kStateRows];
#pragma unroll
    for (int j = 0; j < kStateRows; j++) {
      const int row = step * kStateRows + j;
      h[j] = kept[j].open();
      const auto* coefficients = reinterpret_cast<const float4*>(shared.coef + row * 2 * kStates);
      const auto B = Share<S>::of(coefficients, part);
      const auto C = Share<S>::of(coefficients + kStates / 4, part);
      const float dt = own_dt[row * Size::dt_pitch + lane / 2];
      const float dtu = dt * to_float(own_u[row * 16 + lane / 2]);
      float y[2] = {};
#pragma unroll
      for (int k = 0; k < 8; k++) {
        h[j].item[k] = fmaf(exp2_approx(dt * A.item[k]), h[j].item[k], dtu * B.item[k]);
        y[k % 2] = fmaf(h[j].item[k], C.item[k], y[k % 2]);
      }
      sum[j] = y[0] + y[1];
      sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], 1);
    }
    ask(step + Depth);
#pragma unroll
    for (int j = 0; j < kStateRows; j++) {
      Dice dice{};
      if constexpr (sizeof(S) == 2) dice = Dice::of(sum[j], channel, part);
      const int slot = shared.slot[step * kStateRows + j];
      if (slot >= 0) keep(s.template states<S>(slot) + channel * kStates, part, h[j], dice);
    }
    // The gate: of a channel's two lanes each has one sequence.
    const int row = step * kStateRows + part;
    const float now = to_float(own_u[row * 16 + lane / 2]), z = to_float(own_z[row * 16 + lane / 2]);
    if (row < rows)
      from_float(s.y[(first_row + row) * s.y_stride + channel],
                 fmaf(D, now, part ? sum[1] : sum[0]) * silu(z));
  }
}

}  // namespace ss::cuda
