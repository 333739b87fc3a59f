// mamba_step of many sequences, in two kernels.
//   project  a cluster has up to 16 sequences and some columns of dbc, each of its blocks a slice
//            of the channels: their convolution, u, and the slice's share of x_proj on the tensor
//            cores. Each block adds up some of the columns, whose shares all blocks push into its
//            shared memory.
//   update   a block has 32 channels of Rows sequences: dt_proj on the tensor cores, then their
//            states as they come, 16 bytes a thread and access. A block asks for the states of 8 rows
//            before it needs the first.
// The convolution's states move on in project, or in update where several clusters read them.
#pragma once
#include "mamba_step.cuh"

namespace ss::cuda {

constexpr int kProjectThreads = 256;
constexpr int kProjectRows = 16;
constexpr int kUpdateThreads = 128;
constexpr int kUpdateChannels = kUpdateThreads / 4;

template <class T>
struct ProjectMemory {
  int pitch, columns, share;  // of a row of u, which keeps banks apart; of dbc, a cluster's and
                              // those that a block adds up
  float* shares;     // [blocks][kProjectRows][share]
  T* u;              // [kProjectRows][pitch]

  __host__ __device__ ProjectMemory(const Step<T>& s, int blocks, int parts, void* memory)
      : pitch(s.slice | kUnit),
        columns((s.k + 8 * parts - 1) / (8 * parts) * 8),
        share((columns + 2 * blocks - 1) / (2 * blocks) * 2) {
    shares = static_cast<float*>(memory);
    u = reinterpret_cast<T*>(shares + blocks * kProjectRows * share);
  }
  static int bytes(const Step<T>& s, int blocks, int parts) {
    char* const start = reinterpret_cast<char*>(1024);
    const ProjectMemory m(s, blocks, parts, start);
    return static_cast<int>(reinterpret_cast<char*>(m.u + kProjectRows * m.pitch) - start);
  }
};

// The block's channels of the cluster's sequences: into shared.u, with zeros around, and s.u.
template <class T>
__device__ void convolve_slice(const Step<T>& s, const ProjectMemory<T>& shared, int first_row,
                               int rows, int first, int channels, int part, bool alone) {
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
      moved[j] = alone ? state : nullptr;
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
        T* to = s.u + (first_row + row) * s.u_stride + first + c;
        if (part == 0) *reinterpret_cast<Raw<T, V>*>(to) = u;
      }
      *reinterpret_cast<Raw<T, V>*>(shared.u + row * shared.pitch + c) = u;
    }
  }
}

template <class T, int Blocks>
__global__ void __launch_bounds__(kProjectThreads, 3)
    mamba_step_project(const __grid_constant__ Step<T> s, int cluster_rows, int parts) {
  constexpr int kDepth = 4;
  extern __shared__ float4 memory[];
  const ProjectMemory<T> shared(s, Blocks, parts, memory);
  const int block = static_cast<int>(cluster_rank()), thread = threadIdx.x, lane = thread % 32;
  const int g = lane / 4, q = lane % 4, cluster = blockIdx.x / Blocks, part = cluster % parts;
  const int first_row = cluster / parts * cluster_rows, first = block * s.slice;
  const int first_column = part * shared.columns, left = s.k - first_column;
  const int columns = left < shared.columns ? left : shared.columns;  // none, or even less
  const int rows = s.count - first_row < cluster_rows ? s.count - first_row : cluster_rows;
  const int rest = s.d - first, channels = rest < 0 ? 0 : rest < s.slice ? rest : s.slice;
  let_next_start();
  if (first_row == 0 && channels > 0) {
    prefetch_rows(s.x_proj + first_column * s.x_proj_stride + first, s.x_proj_stride * sizeof(T),
                  columns, channels * static_cast<int>(sizeof(T)));
    prefetch_span(s.conv_weight + first * kTaps, channels * kTaps * sizeof(float));
  }
  cluster_arrive();  // the others' shared memory is there once they have
  wait_for_previous();
  s.check();
  convolve_slice(s, shared, first_row, rows, first, channels, part, parts == 1);
  __syncthreads();
  cluster_wait();

  for (int j = thread / 32; 8 * j < columns; j += kProjectThreads / 32) {
    const int row = 8 * j + g < columns ? 8 * j + g : columns - 1;
    const T* w = s.x_proj + (first_column + row) * s.x_proj_stride + first;
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
    if (column >= columns) continue;
    float* to = shared.shares + (block * kProjectRows + g) * shared.share + column % shared.share;
    const uint32_t low = in_block(to, owner), high = in_block(to + 8 * shared.share, owner);
    store_in_block(low, float2{c[0][0] + c[1][0], c[0][1] + c[1][1]});
    store_in_block(high, float2{c[0][2] + c[1][2], c[0][3] + c[1][3]});
  }
  cluster_arrive();
  cluster_wait();
  for (int i = thread; i < rows * shared.share; i += kProjectThreads) {
    const int column = block * shared.share + i % shared.share;
    if (column >= columns) continue;
    float sum = 0.0f;
#pragma unroll
    for (int from = 0; from < Blocks; from++)
      sum += shared.shares[from * kProjectRows * shared.share + i];
    from_float(s.dbc[(first_row + i / shared.share) * s.dbc_stride + first_column + column], sum);
  }
}

// delta of 8 channels from c0 on for Rows sequences, as multiply_unit leaves it.
template <int Rows, class T>
__device__ void project_delta(const Step<T>& s, int first_row, int c0, float (&c)[4]) {
  constexpr int kDepth = 4;
  const int g = threadIdx.x % 32 / 4;
  const auto dbc = [&](int row) {
    return s.dbc + (first_row + row < s.count ? first_row + row : s.count - 1) * s.dbc_stride;
  };
  const T* w = s.dt_weight + static_cast<int64_t>(c0 + g) * s.r;
  for (int begin = 0; begin < s.r; begin += kDepth * kUnit) {
    uint4 b[kDepth], low[kDepth], high[kDepth] = {};
    load_units(b, w, begin, s.r);
    load_units(low, dbc(g), begin, s.r);
    if (Rows > 8) load_units(high, dbc(g + 8), begin, s.r);
#pragma unroll
    for (int i = 0; i < kDepth; i++) multiply_unit(c, low[i], high[i], b[i], T{});
  }
}

// Moves the states of the convolution on: 32 channels of `rows` sequences, 4 channels a thread.
template <class T>
__device__ void shift_taps(const Step<T>& s, const int64_t* slots, int first_row, int rows,
                           int first) {
  constexpr int V = 4, kGroups = kUpdateChannels / V;
  for (int i = threadIdx.x; i < rows * kGroups; i += kUpdateThreads) {
    const int row = i / kGroups, c = first + i % kGroups * V;
    if (slots[row] < 0) continue;
    T* state = s.conv_state + slots[row] * s.conv_state_stride + c * (kTaps - 1);
    Tap<T, V> tap;
    tap.load(s.xz + (first_row + row) * s.xz_stride + c, state);
    tap.store(state);
  }
}

template <class T, int Rows>
__global__ void __launch_bounds__(kUpdateThreads, Rows > 8 ? 4 : 6)
    mamba_step_update(const __grid_constant__ Step<T> s, bool shift) {
  constexpr int kBatch = Rows < 8 ? Rows : 8;  // rows whose states are under way together
  constexpr int kMma = Rows > 8 ? 2 : 1;       // rows of a lane's share of delta, 8 apart
  __shared__ float4 token[Rows][kUpdateChannels];  // dt, dt u, u, silu(z)
  __shared__ float4 coefficients[Rows][2 * kStates / 4];
  __shared__ int64_t slots[Rows];
  const int blocks = s.d / kUpdateChannels, thread = threadIdx.x, lane = thread % 32;
  const int first_row = blockIdx.x / blocks * Rows, first = blockIdx.x % blocks * kUpdateChannels;
  const int rows = s.count - first_row < Rows ? s.count - first_row : Rows;
  let_next_start();
  if (first_row == 0)
    prefetch_span(s.dt_weight + static_cast<int64_t>(first) * s.r,
                  kUpdateChannels * s.r * sizeof(T));
  if (thread < rows)
    if (const int64_t slot = s.likely_slot(first_row + thread); slot >= 0)
      prefetch_weights(s.scan_state + slot * s.scan_state_stride + first * kStates,
                       kUpdateChannels * kStates * sizeof(float));
  wait_for_previous();

  if (thread < Rows) slots[thread] = thread < rows ? s.slot(first_row + thread) : -1;
  __syncthreads();
  float4 h[2][kBatch];
  const int64_t own = first * kStates + thread * 4;  // in a row of states
  const auto load = [&](int batch) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int64_t slot = slots[batch * kBatch + i];
      const float* state = s.scan_state + slot * s.scan_state_stride + own;
      h[batch % 2][i] = slot < 0 ? float4{} : *reinterpret_cast<const float4*>(state);
    }
  };
  load(0);
  const float4 A = *reinterpret_cast<const float4*>(s.A + own);
  const float D = s.D[first + thread / 4];

  // A lane has two neighbouring channels of rows g and, if any, g + 8.
  const int c0 = thread / 32 * 8, mine = c0 + lane % 4 * 2, g = lane / 4;
  Pack<2> u[kMma] = {}, z[kMma] = {};
#pragma unroll
  for (int i = 0; i < kMma; i++) {
    if (g + 8 * i >= rows) continue;
    u[i] = Pack<2>::load(s.u + (first_row + g + 8 * i) * s.u_stride + first + mine);
    z[i] = Pack<2>::load(s.xz + (first_row + g + 8 * i) * s.xz_stride + s.d + first + mine);
  }
  for (int i = thread; i < rows * 8; i += kUpdateThreads) {
    const T* row = s.dbc + (first_row + i / 8) * s.dbc_stride + s.r;
    const Pack<4> some = Pack<4>::load(row + i % 8 * 4);
    coefficients[i / 8][i % 8] = {some.item[0], some.item[1], some.item[2], some.item[3]};
  }
  float delta[4] = {};
  project_delta<Rows>(s, first_row, first + c0, delta);
#pragma unroll
  for (int i = 0; i < kMma; i++)
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (g + 8 * i >= Rows) continue;
      const float dt = softplus(rounded(delta[2 * i + k], T{}) + s.dt_bias[first + mine + k]);
      token[g + 8 * i][mine + k] = {dt, dt * u[i].item[k], u[i].item[k], silu(z[i].item[k])};
    }
  __syncthreads();

#pragma unroll
  for (int batch = 0; batch < Rows / kBatch; batch++) {
    if (batch + 1 < Rows / kBatch) load(batch + 1);
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int row = batch * kBatch + i;
      if (row >= rows) break;
      const float4 now = token[row][thread / 4];
      float4& state = h[batch % 2][i];
      const float y = advance(state, A, now.x, now.y, coefficients[row][thread % 4],
                              coefficients[row][4 + thread % 4]);
      T* to = s.y + (first_row + row) * s.y_stride + first + thread / 4;
      if (thread % 4 == 0) from_float(*to, fmaf(D, now.z, y) * now.w);
      float* row_state = s.scan_state + slots[row] * s.scan_state_stride + own;
      if (slots[row] >= 0) *reinterpret_cast<float4*>(row_state) = state;
    }
  }
  if (shift) shift_taps(s, slots, first_row, rows, first);
}

}  // namespace ss::cuda
