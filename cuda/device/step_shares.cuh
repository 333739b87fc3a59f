// The first kernel of a step between in_proj and out_proj for many sequences of a published model:
// convolution, u, and x_proj in shares. A block has Channels channels of some sequences, 16 together:
// what x_proj makes of those channels alone. A cluster's blocks have the same sequences, and each adds up
// an eighth of the rows: a share of 8 * Channels channels, in f32. step_states.cuh adds up those.
#pragma once
#include "cluster.cuh"
#include "mamba_step.cuh"
#include "weight_ring.cuh"

namespace ss::cuda {

constexpr int kShareBlocks = 8;  // of a cluster

// Channels of a block of 16 * Tiles sequences.
template <class T, int Channels, int Tiles>
struct ShareMemory {
  static constexpr int each = 16 / kShareBlocks;  // of 16 rows, those that a block adds up
  static constexpr int rows = 16 * Tiles, own = each * Tiles, threads = 2 * Channels;
  static constexpr int pitch = Channels | kUnit;  // what keeps banks apart
  T* x_proj;      // [k][pitch]
  T* u;           // [rows][pitch]
  float* parts;   // [kShareBlocks][own][k]: from all blocks
  int* slot;      // [rows]
  uint64_t* met;
  char* end;

  __host__ __device__ ShareMemory(int k, void* memory) {
    x_proj = static_cast<T*>(memory);
    u = x_proj + k * pitch;
    parts = reinterpret_cast<float*>(u + rows * pitch);
    slot = reinterpret_cast<int*>(parts + rows * k);
    met = reinterpret_cast<uint64_t*>(slot + rows);
    end = reinterpret_cast<char*>(met + 1);
  }
  static int bytes(int k) {
    char* const start = reinterpret_cast<char*>(1024);
    return static_cast<int>(ShareMemory(k, start).end - start);
  }
};

// To another block of the cluster, or this one: its barrier is told.
__device__ __forceinline__ void send_pair(float* to, float a, float b, uint64_t* barrier, unsigned block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
          in_block(to, block)),
      "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(in_block(barrier, block))
      : "memory");
#endif
}

template <class T, int Channels, int Tiles>
__global__ void __launch_bounds__(2 * Channels, Tiles > 1 ? 2 : 4 * 128 / Channels)
    step_shares(const __grid_constant__ Step<T> s, float* shares) {
  using Memory = ShareMemory<T, Channels, Tiles>;
  constexpr int kThreads = Memory::threads, kWarps = kThreads / 32, kUnits = Channels / kUnit;
  constexpr int V = 2, kAcross = Channels / V, kAtOnce = kThreads / kAcross;  // rows
  constexpr int kOwn = Memory::rows / kAtOnce;  // of a thread
  constexpr int kEights = Channels / 8;
  extern __shared__ float4 memory[];
  const Memory shared(s.k, memory);
  const int groups = s.d / Channels, group = static_cast<int>(blockIdx.x) % groups;
  const int first_row = static_cast<int>(blockIdx.x) / groups * Memory::rows, first = group * Channels;
  const int rows = s.count - first_row < Memory::rows ? s.count - first_row : Memory::rows;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  const int rank = group % kShareBlocks;
  if (first_row == 0) {
    prefetch_rows(s.x_proj + first, s.x_proj_stride * sizeof(T), s.k, Channels * sizeof(T));
    prefetch_span(s.conv_weight + first * kTaps, Channels * kTaps * sizeof(float));
  }
  if (thread < rows)
    if (const int64_t slot = s.likely_slot(first_row + thread); slot >= 0)
      prefetch_weights(s.conv_state + slot * s.conv_state_stride + first * (kTaps - 1),
                       Channels * (kTaps - 1) * sizeof(T));
  if (thread == 0) {
    init_barrier(shared.met, 1);
    publish_barriers();
    arrive_expecting(shared.met, Memory::rows * s.k * sizeof(float));
  }
  cluster_arrive();
  wait_for_previous();
  let_next_start();
  if (thread < Memory::rows)
    shared.slot[thread] = thread < rows ? static_cast<int>(s.slot(first_row + thread)) : -1;
  s.check();

  const int c = thread % kAcross * V, top = thread / kAcross;
  float4 weight[V];
  float bias[V] = {};
#pragma unroll
  for (int k = 0; k < V; k++) {
    weight[k] = reinterpret_cast<const float4*>(s.conv_weight)[first + c + k];
    if (s.conv_bias) bias[k] = s.conv_bias[first + c + k];
  }
  __syncthreads();
  PairTap<T> tap[kOwn];
  const auto state_of = [&](int slot) {
    return s.conv_state + slot * s.conv_state_stride + (first + c) * (kTaps - 1);
  };
#pragma unroll
  for (int j = 0; j < kOwn; j++) {
    const int row = top + j * kAtOnce, slot = shared.slot[row];
    const T* x = s.xz + static_cast<int64_t>(first_row + row) * s.xz_stride + first + c;
    tap[j].load(x, row < rows, state_of(slot), slot >= 0);
  }
  for (int i = thread; i < s.k * kEights; i += kThreads) {
    const int row = i / kEights, at = i % kEights * 8;
    copy_async(shared.x_proj + row * Memory::pitch + at, s.x_proj + row * s.x_proj_stride + first + at, true);
  }
  end_copy_group();
#pragma unroll
  for (int j = 0; j < kOwn; j++) {
    const int row = top + j * kAtOnce;
    Tap<T, V> own = tap[j].open();
    const Raw<T, V> u = own.convolve(weight, bias);
    *reinterpret_cast<Raw<T, V>*>(shared.u + row * Memory::pitch + c) = u;
    if (row >= rows) continue;
    *reinterpret_cast<Raw<T, V>*>(s.u + (first_row + row) * s.u_stride + first + c) = u;
    if (const int slot = shared.slot[row]; slot >= 0) own.store(state_of(slot));
  }
  wait_copy_groups<0>();
  __syncthreads();
  cluster_wait();

  // A warp has 16 rows, and some of the columns.
  constexpr int kParts = kWarps / Tiles;
  if (warp < kParts * Tiles) {
    const int tile = warp % Tiles;
    const T* u = shared.u + (16 * tile + g) * Memory::pitch + q * 8;
    uint4 low[kUnits], high[kUnits];
#pragma unroll
    for (int unit = 0; unit < kUnits; unit++) {
      low[unit] = *reinterpret_cast<const uint4*>(u + unit * kUnit);
      high[unit] = *reinterpret_cast<const uint4*>(u + 8 * Memory::pitch + unit * kUnit);
    }
    const unsigned owner = static_cast<unsigned>(g) / Memory::each;
    float* const to = shared.parts + (rank * Memory::own + Memory::each * tile + g % Memory::each) * s.k + 2 * q;
#pragma unroll 2
    for (int j = warp / Tiles; 8 * j < s.k; j += kParts) {
      const T* w = shared.x_proj + (8 * j + g) * Memory::pitch + q * 8;
      float sum[2][4] = {};
#pragma unroll
      for (int unit = 0; unit < kUnits; unit++)
        multiply_unit(sum[unit % 2], low[unit], high[unit], *reinterpret_cast<const uint4*>(w + unit * kUnit), T{});
      send_pair(to + 8 * j, sum[0][0] + sum[1][0], sum[0][1] + sum[1][1], shared.met, owner);
      send_pair(to + 8 * j, sum[0][2] + sum[1][2], sum[0][3] + sum[1][3], shared.met, owner + kShareBlocks / 2);
    }
  }
  wait_barrier(shared.met, 0);
  const int quads = s.k / 4;
  for (int i = thread; i < Memory::own * quads; i += kThreads) {
    const int own = i / quads, column = i % quads * 4;
    const int row = own / Memory::each * 16 + rank * Memory::each + own % Memory::each;
    if (row >= rows) continue;
    float4 all{};
#pragma unroll
    for (int from = 0; from < kShareBlocks; from++) {
      const float4 some = *reinterpret_cast<const float4*>(shared.parts + (from * Memory::own + own) * s.k + column);
      all.x += some.x, all.y += some.y, all.z += some.z, all.w += some.w;
    }
    float* to = shares + (static_cast<int64_t>(group / kShareBlocks) * s.count + first_row + row) * s.k + column;
    *reinterpret_cast<float4*>(to) = all;
  }
}

}  // namespace ss::cuda
