// mamba_step of few sequences, bound by latency: a cluster of blocks has one sequence, each block a
// slice of its channels, from the convolution to y. What crosses the cluster is each slice's share
// of x_proj's sums, pushed into every block's shared memory and added there in the order of slices.
#pragma once
#include "mamba_step.cuh"

namespace ss::cuda {

constexpr int kOneThreads = 512;
constexpr int kOnePieces = 3;  // of 4 states, a thread: what bounds the slice

// A block's shared memory.
template <class T>
struct OneMemory {
  int wide_k, wide_r;  // k and r, filled up
  float *shares, *coefficients;  // [blocks][wide_k] of x_proj's sums; B, then C
  float2* token;                 // [slice]: first dt's bias, then dt and dt u
  T *u, *rank;                   // [slice], [wide_r]: what dt_proj is given

  __host__ __device__ OneMemory(const Step<T>& s, int blocks, void* memory)
      : wide_k((s.k + 7) / 8 * 8), wide_r((s.r + kUnit - 1) / kUnit * kUnit) {
    shares = static_cast<float*>(memory);
    coefficients = shares + blocks * wide_k;
    token = reinterpret_cast<float2*>(coefficients + 2 * kStates);
    u = reinterpret_cast<T*>(token + s.slice);
    rank = u + s.slice;
  }
  static int bytes(const Step<T>& s, int blocks) {
    char* const start = reinterpret_cast<char*>(1024);
    const OneMemory m(s, blocks, start);
    return static_cast<int>(reinterpret_cast<char*>(m.rank + m.wide_r) - start);
  }
};

// Products of one row `a`, in shared memory, with rows of w, 8 a warp at a time: finish(j, c) is
// called by all lanes for rows 8 j to 8 j + 7, of which lane q < 4 has sums 2 q and 2 q + 1 as c[0]
// and c[1]. The first weights are asked for when this is made, the next while some are used.
template <class T>
class OneRow {
 public:
  __device__ OneRow(const T* w, int64_t stride, int rows, int columns)
      : w_(w),
        stride_(stride),
        rows_(rows),
        columns_(columns),
        j_(static_cast<int>(threadIdx.x) / 32) {
    load();
  }
  template <class F>
  __device__ void multiply(const T* a, F&& finish) {
    const int lane = threadIdx.x % 32;
    float c[2][4] = {};
    while (8 * j_ < rows_) {
      uint4 now[kDepth];
#pragma unroll
      for (int i = 0; i < kDepth; i++) now[i] = next_[i];
      const int j = j_, begin = at_;
      at_ += kDepth * kUnit;
      const bool last = at_ >= columns_;
      if (last) at_ = 0, j_ += kOneThreads / 32;
      load();
#pragma unroll
      for (int i = 0; i < kDepth; i++) {
        const int at = begin + i * kUnit;
        if (at >= columns_) break;
        const uint4 low = lane < 4 ? *reinterpret_cast<const uint4*>(a + at + lane * 8) : uint4{};
        multiply_unit(c[i % 2], low, uint4{}, now[i], T{});
      }
      if (!last) continue;
      const float sums[2] = {c[0][0] + c[1][0], c[0][1] + c[1][1]};
      finish(j, sums);
#pragma unroll
      for (int i = 0; i < 4; i++) c[0][i] = c[1][i] = 0.0f;
    }
  }

 private:
  static constexpr int kDepth = 6;

  __device__ void load() {
    if (8 * j_ >= rows_) return;
    const int row = 8 * j_ + static_cast<int>(threadIdx.x) % 32 / 4;
    load_units(next_, w_ + (row < rows_ ? row : rows_ - 1) * stride_, at_, columns_);
  }

  const T* w_;
  int64_t stride_;
  int rows_, columns_, j_, at_ = 0;
  uint4 next_[kDepth];
};

template <class T>
__device__ void prefetch_one(const Step<T>& s, int first, int channels, int sequence) {
  if (channels <= 0) return;
  if (const int64_t slot = s.likely_slot(sequence); slot >= 0) {
    prefetch_span(s.conv_state + slot * s.conv_state_stride + first * (kTaps - 1),
                  channels * (kTaps - 1) * sizeof(T));
    prefetch_span(s.template states<float>(slot) + first * kStates,
                  channels * kStates * sizeof(float));
  }
  if (sequence > 0) return;
  prefetch_rows(s.x_proj + first, s.x_proj_stride * sizeof(T), s.k,
                channels * static_cast<int>(sizeof(T)));
  prefetch_span(s.conv_weight + first * kTaps, channels * kTaps * sizeof(float));
  prefetch_span(s.dt_weight + static_cast<int64_t>(first) * s.r, channels * s.r * sizeof(T));
  prefetch_span(s.A + first * kStates, channels * kStates * sizeof(float));
}

template <class T, int Blocks>
__global__ void __launch_bounds__(kOneThreads, 1)
    mamba_step_one(const __grid_constant__ Step<T> s) {
  extern __shared__ float4 memory[];
  const OneMemory<T> shared(s, Blocks, memory);
  const int block = static_cast<int>(cluster_rank()), sequence = blockIdx.x / Blocks;
  const int thread = threadIdx.x, lane = thread % 32, first = block * s.slice;
  const int channels = s.d - first < s.slice ? s.d - first : s.slice;  // none, or even less
  let_next_start();
  prefetch_one(s, first, channels, sequence);
  cluster_arrive();  // the others' shared memory is there once they have
  wait_for_previous();
  s.check();

  const int64_t slot = s.slot(sequence);
  const int columns = channels > 0 ? channels : 0;
  OneRow<T> x_proj(s.x_proj + first, s.x_proj_stride, s.k, columns);
  for (int c = thread; c < s.slice; c += kOneThreads) {
    Raw<T, 1> u{};
    if (c < channels) {
      T* row = s.conv_state + slot * s.conv_state_stride;
      T* state = slot < 0 ? nullptr : row + (first + c) * (kTaps - 1);
      const float4 weight[1] = {reinterpret_cast<const float4*>(s.conv_weight)[first + c]};
      const float bias[1] = {s.conv_bias ? s.conv_bias[first + c] : 0.0f};
      Tap<T, 1> tap;
      tap.load(s.xz + sequence * s.xz_stride + first + c, state);
      u = tap.convolve(weight, bias);
      s.u[sequence * s.u_stride + first + c] = u.item[0];
      if (state) tap.store(state);
    }
    shared.u[c] = u.item[0];
    if (c < channels) shared.token[c].x = s.dt_bias[first + c];
  }
  __syncthreads();

  cluster_wait();
  x_proj.multiply(shared.u, [&](int j, const float (&c)[2]) {
    float4 sums;  // four of the eight, by the parity of the lane; half a warp's pairs of lanes
    const int from = lane % 2 * 2;
    sums.x = __shfl_sync(0xffffffffu, c[0], from);
    sums.y = __shfl_sync(0xffffffffu, c[1], from);
    sums.z = __shfl_sync(0xffffffffu, c[0], from + 1);
    sums.w = __shfl_sync(0xffffffffu, c[1], from + 1);
    float* to = shared.shares + block * shared.wide_k + 8 * j + lane % 2 * 4;
    if (lane / 2 < Blocks) store_in_block(in_block(to, lane / 2), sums);
  });
  if (columns == 0)  // a slice beyond the channels: no sums came
    for (int i = thread; i < Blocks * (shared.wide_k / 4); i += kOneThreads) {
      float* to = shared.shares + block * shared.wide_k + i / Blocks * 4;
      store_in_block(in_block(to, i % Blocks), float4{});
    }
  cluster_arrive();

  // Until the sums are there: what is needed next is asked for.
  OneRow<T> dt_proj(s.dt_weight + static_cast<int64_t>(first) * s.r, s.r, columns, s.r);
  float4 h[kOnePieces], A[kOnePieces];
  float D[kOnePieces], gate[kOnePieces], u[kOnePieces];
  float* state = slot < 0 ? nullptr : s.template states<float>(slot) + first * kStates;
#pragma unroll
  for (int i = 0; i < kOnePieces; i++) {
    const int piece = i * kOneThreads + thread;
    h[i] = A[i] = float4{};
    D[i] = gate[i] = u[i] = 0.0f;
    if (piece >= columns * 4) continue;
    D[i] = s.D[first + piece / 4];
    gate[i] = to_float(s.xz[sequence * s.xz_stride + s.d + first + piece / 4]);
    u[i] = to_float(shared.u[piece / 4]);
    if (state) h[i] = reinterpret_cast<const float4*>(state)[piece];
    A[i] = reinterpret_cast<const float4*>(s.A + first * kStates)[piece];
  }
  cluster_wait();
  for (int i = thread; i < s.k; i += kOneThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int from = 0; from < Blocks; from++) sum += shared.shares[from * shared.wide_k + i];
    T item;
    from_float(item, sum);
    if (i < s.r)
      shared.rank[i] = item;
    else
      shared.coefficients[i - s.r] = to_float(item);
    if (block == 0) s.dbc[sequence * s.dbc_stride + i] = item;
  }
  for (int i = s.r + thread; i < shared.wide_r; i += kOneThreads) from_float(shared.rank[i], 0.0f);
  __syncthreads();

  dt_proj.multiply(shared.rank, [&](int j, const float (&c)[2]) {
    const int i = 8 * j + 2 * lane;
    if (lane < 4)
      for (int k = 0; k < 2; k++) {
        const float dt = softplus(rounded(c[k], T{}) + shared.token[i + k].x);
        shared.token[i + k] = {dt, dt * to_float(shared.u[i + k])};
      }
  });
  __syncthreads();

#pragma unroll
  for (int i = 0; i < kOnePieces; i++) {
    const int piece = i * kOneThreads + thread, c = piece / 4;
    if (i * kOneThreads + thread / 32 * 32 >= columns * 4) break;  // a whole warp
    const float4* coefficients = reinterpret_cast<const float4*>(shared.coefficients) + piece % 4;
    const float2 token = shared.token[c];
    float y = advance(h[i], A[i], token.x, token.y, coefficients[0], coefficients[kStates / 4]);
    if (piece % 4 == 0) {
      y = fmaf(D[i], u[i], y) * silu(gate[i]);
      from_float(s.y[sequence * s.y_stride + first + c], y);
    }
    if (state) reinterpret_cast<float4*>(state)[piece] = h[i];
  }
}

}  // namespace ss::cuda
