// The first kernel of mamba_step for many sequences: from xz to u, dbc and delta. A cluster has up to 16
// sequences, each of its blocks a slice of the channels: their convolution, u, and the slice's share of
// x_proj on the tensor cores. Each block adds up some of dbc's columns, whose shares all blocks push
// into its shared memory, and pushes what is dt_proj's operand to all. Each then has delta for its slice;
// it lies where y will. Left, on an H100 with 4,096 channels: a kernel for the convolution and one
// whose warps take x_proj's rows 16 at a time (5.5 + 15.2 us for 64 sequences, 8.5 + 23 for 256, where
// this one's predecessor without delta took 15.3 and 22).
#pragma once
#include "mamba_step.cuh"

namespace ss::cuda {

constexpr int kProjectThreads = 256;
constexpr int kProjectRows = 16;

template <class T>
struct ProjectMemory {
  int pitch, wide_r, share;  // of a row of u and of rank, which keeps banks apart; columns of dbc
                             // that a block adds up
  float* shares;             // [blocks][kProjectRows][share]
  T* u;                      // [kProjectRows][pitch]
  T* rank;                   // [kProjectRows][wide_r]: what dt_proj is given

  __host__ __device__ ProjectMemory(const Step<T>& s, int blocks, void* memory)
      : pitch(s.slice | kUnit),
        wide_r((s.r + kUnit - 1) / kUnit * kUnit | kUnit),
        share((s.k + 2 * blocks - 1) / (2 * blocks) * 2) {
    shares = static_cast<float*>(memory);
    u = reinterpret_cast<T*>(shares + blocks * kProjectRows * share);
    rank = u + kProjectRows * pitch;
  }
  static int bytes(const Step<T>& s, int blocks) {
    char* const start = reinterpret_cast<char*>(1024);
    const ProjectMemory m(s, blocks, start);
    return static_cast<int>(reinterpret_cast<char*>(m.rank + kProjectRows * m.wide_r) - start);
  }
};

// The block's channels of the cluster's sequences: into shared.u, with zeros around, and s.u.
template <class T>
__device__ void convolve_slice(const Step<T>& s, const ProjectMemory<T>& shared, int first_row,
                               int rows, int first, int channels) {
  constexpr int V = 4, kTogether = 2;
  const int columns = shared.pitch / V;
  for (int i = threadIdx.x; i < kProjectRows * columns; i += kProjectThreads * kTogether) {
    Tap<T, V> tap[kTogether];
    T* moved[kTogether];  // the states to move on
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      const int at = i + j * kProjectThreads, row = at / columns, c = at % columns * V;
      if (row >= rows || c >= channels) continue;
      const int64_t slot = s.slot(first_row + row);
      T* own = s.conv_state + slot * s.conv_state_stride + (first + c) * (kTaps - 1);
      T* state = slot < 0 ? nullptr : own;
      tap[j].load(s.xz + (first_row + row) * s.xz_stride + first + c, state);
      moved[j] = state;
    }
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      const int at = i + j * kProjectThreads, row = at / columns, c = at % columns * V;
      if (row >= kProjectRows) break;
      Raw<T, V> u{};
      if (row < rows && c < channels) {
        float4 weight[V];
        float bias[V];
#pragma unroll
        for (int k = 0; k < V; k++) {
          weight[k] = reinterpret_cast<const float4*>(s.conv_weight)[first + c + k];
          bias[k] = s.conv_bias ? s.conv_bias[first + c + k] : 0.0f;
        }
        u = tap[j].convolve(weight, bias);
        if (moved[j]) tap[j].store(moved[j]);
        *reinterpret_cast<Raw<T, V>*>(s.u + (first_row + row) * s.u_stride + first + c) = u;
      }
      *reinterpret_cast<Raw<T, V>*>(shared.u + row * shared.pitch + c) = u;
    }
  }
}

// delta of the block's channels, 16 a warp at a time, 8 rows together.
template <class T>
__device__ __forceinline__ void project_delta(const Step<T>& s, const ProjectMemory<T>& shared,
                                              int first_row, int rows, int first, int channels) {
  constexpr int kEights = kProjectRows / 8;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int c = first + static_cast<int>(threadIdx.x) / 32 * 16; c < first + channels;
       c += kProjectThreads / 2) {
    const T* low = s.dt_weight + static_cast<int64_t>(c + g) * s.r + q * 8;
    float x[kEights][4] = {};
#pragma unroll 4
    for (int begin = 0; begin < s.r; begin += kUnit) {
      const bool there = begin + q * 8 < s.r;
      const uint4 a = there ? *reinterpret_cast<const uint4*>(low + begin) : uint4{};
      const uint4 b = there ? *reinterpret_cast<const uint4*>(low + 8 * s.r + begin) : uint4{};
#pragma unroll
      for (int e = 0; e < kEights; e++) {
        const T* rank = shared.rank + (g + 8 * e) * shared.wide_r + begin + q * 8;
        multiply_unit(x[e], a, b, *reinterpret_cast<const uint4*>(rank), T{});
      }
    }
#pragma unroll
    for (int e = 0; e < kEights; e++)
#pragma unroll
      for (int k = 0; k < 4; k++) {  // channels c + g and 8 further, rows 2 q and 2 q + 1
        const int row = 8 * e + 2 * q + k % 2;
        if (row < rows)
          from_float(s.y[(first_row + row) * s.y_stride + c + g + k / 2 * 8], x[e][k]);
      }
  }
}

template <class T, int Blocks>
__global__ void __launch_bounds__(kProjectThreads, 3)
    mamba_step_project(const __grid_constant__ Step<T> s, int cluster_rows) {
  constexpr int kDepth = 4;
  extern __shared__ float4 memory[];
  const ProjectMemory<T> shared(s, Blocks, memory);
  const int block = static_cast<int>(cluster_rank()), thread = threadIdx.x, lane = thread % 32;
  const int g = lane / 4, q = lane % 4;
  const int first_row = static_cast<int>(blockIdx.x) / Blocks * cluster_rows, first = block * s.slice;
  const int rows = s.count - first_row < cluster_rows ? s.count - first_row : cluster_rows;
  const int rest = s.d - first, channels = rest < 0 ? 0 : rest < s.slice ? rest : s.slice;
  let_next_start();
  if (first_row == 0 && channels > 0) {
    prefetch_rows(s.x_proj + first, s.x_proj_stride * sizeof(T), s.k,
                  channels * static_cast<int>(sizeof(T)));
    prefetch_span(s.conv_weight + first * kTaps, channels * kTaps * sizeof(float));
    prefetch_span(s.dt_weight + static_cast<int64_t>(first) * s.r, channels * s.r * sizeof(T));
  }
  const int beyond = shared.wide_r - s.r;
  for (int i = thread; i < kProjectRows * beyond; i += kProjectThreads)
    from_float(shared.rank[i / beyond * shared.wide_r + s.r + i % beyond], 0.0f);
  cluster_arrive();  // the others' shared memory is there once they have
  wait_for_previous();
  s.check();
  convolve_slice(s, shared, first_row, rows, first, channels);
  __syncthreads();
  cluster_wait();

  for (int j = thread / 32; 8 * j < s.k; j += kProjectThreads / 32) {
    const int row = 8 * j + g < s.k ? 8 * j + g : s.k - 1;
    const T* w = s.x_proj + row * s.x_proj_stride + first;
    float c[2][4] = {};
    for (int begin = 0; begin < channels; begin += kDepth * kUnit) {
      uint4 b[kDepth];
      load_units(b, w, begin, channels);
#pragma unroll
      for (int i = 0; i < kDepth; i++) {
        if (begin + i * kUnit >= channels) break;
        const T* a = shared.u + g * shared.pitch + begin + i * kUnit + q * 8;
        const uint4 low = *reinterpret_cast<const uint4*>(a);
        const uint4 high = *reinterpret_cast<const uint4*>(a + 8 * shared.pitch);
        multiply_unit(c[i % 2], low, high, b[i], T{});
      }
    }
    const int column = 8 * j + 2 * q, owner = column / shared.share;
    if (column >= s.k) continue;
    float* to = shared.shares + (block * kProjectRows + g) * shared.share + column % shared.share;
    const uint32_t low = in_block(to, owner), high = in_block(to + 8 * shared.share, owner);
    store_in_block(low, float2{c[0][0] + c[1][0], c[0][1] + c[1][1]});
    store_in_block(high, float2{c[0][2] + c[1][2], c[0][3] + c[1][3]});
  }
  cluster_arrive();
  cluster_wait();
  const int pairs = shared.share / 2;
  for (int i = thread; i < rows * pairs; i += kProjectThreads) {
    const int row = i / pairs, at = i % pairs * 2, column = block * shared.share + at;
    if (column >= s.k) continue;
    float2 sum{};
#pragma unroll
    for (int from = 0; from < Blocks; from++) {
      const float* share = shared.shares + (from * kProjectRows + row) * shared.share + at;
      const float2 more = *reinterpret_cast<const float2*>(share);
      sum.x += more.x, sum.y += more.y;
    }
    Raw<T, 2> pair;
    from_float(pair.item[0], sum.x), from_float(pair.item[1], sum.y);
    *reinterpret_cast<Raw<T, 2>*>(s.dbc + (first_row + row) * s.dbc_stride + column) = pair;
    if (column >= s.r) continue;
#pragma unroll
    for (int to = 0; to < Blocks; to++)
      store_in_block(in_block(shared.rank + row * shared.wide_r + column, to),
                     *reinterpret_cast<const uint32_t*>(&pair));
  }
  // Few sequences' states are asked into the L2: what is left of this kernel leaves the memory idle.
  constexpr int64_t kMostEarly = 12 << 20;
  const int64_t state = kStates * s.state_bytes;
  if (thread < rows && channels > 0 && int64_t{s.count} * s.d * state <= kMostEarly)
    if (const int64_t own = s.slot(first_row + thread); own >= 0)
      prefetch_weights(static_cast<const char*>(s.scan_state) +
                           own * s.scan_state_stride * s.state_bytes + first * state,
                       static_cast<uint32_t>(channels * state));
  cluster_arrive();
  cluster_wait();
  project_delta(s, shared, first_row, rows, first, channels);
}

}  // namespace ss::cuda
