// What the computing warps of grid_layers.cuh do for the residual and the two large products.
#pragma once
#include "grid_layer.cuh"
#include "mma.cuh"

namespace ss::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// As pair_floats, of bf16 by a shift and a mask.
__device__ __forceinline__ float2 pair_from(uint32_t bits, __nv_bfloat16) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
__device__ __forceinline__ float2 pair_from(uint32_t bits, __half type) { return pair_floats(bits, type); }

template <class T, class Size>
struct GridRows {
  static constexpr int m = Size::m, d = Size::d;
  static constexpr int channels = Size::channels, columns = Size::columns;
  static constexpr int kEights = columns / 8;

  const GridLayers<T>& s;
  GridMemory<Size>& rest;
  char* const act_memory;
  char* const states;
  typename Size::Wide wide;
  typename Size::Act act;
  GridWeights<Size> weights;
  uint32_t round;

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, block = blockIdx.x;
  const int group = warp / 4;                                           // warpgroup
  const int row = warp % 4 * 16 + lane / 4 + 8 * group, q = lane % 4;   // of a sum that two warpgroups have joined
  const int channel = block * channels;
  const bool owner = block < s.count;
  uint32_t heard = 0;
  float2 residual[Size::pairs] = {};

  static __device__ __forceinline__ void meet() {
    __syncwarp();  // a warp whose lanes are apart would be counted for each group of them
    asm volatile("bar.sync 1, %0;" ::"n"(kGridThreads) : "memory");
  }
  __device__ __forceinline__ void wait_until_heard() {
    wait_barrier(&rest.heard, heard);
    heard ^= 1;
  }
  // By each warp: the activations' place is free.
  __device__ __forceinline__ void open_place() const {
    __syncwarp();
    if (lane == 0) arrive(&rest.open);
  }
  // What is to be sent lies there.
  __device__ __forceinline__ void stage() const {
    shared_is_written();
    __syncwarp();
    if (lane == 0) arrive(&rest.staged);
  }
  // Items i < count of all threads, 16 bytes each.
  template <class F>
  __device__ __forceinline__ void pieces(int of_row, F f) const {
    for (int i = thread; i < s.count * of_row; i += kGridThreads) f(i / of_row, i % of_row);
  }

  __device__ __forceinline__ void begin() {
    if (!owner) return;
#pragma unroll
    for (int i = 0; i < Size::pairs; i++) {
      const int64_t at = static_cast<int64_t>(block) * m + 2 * (thread + i * kGridThreads);
      residual[i] = *reinterpret_cast<const float2*>(s.residual + at);
      if (s.x) {
        const float2 x = pair_from(*reinterpret_cast<const uint32_t*>(s.x + at), T{});
        residual[i].x += x.x, residual[i].y += x.y;
      }
    }
  }

  // What a layer needs of small tensors, ahead.
  __device__ __forceinline__ void load(const GridLayer<T>& l) {
    constexpr int kPast = Size::past_bytes / 16;
    pieces(kPast, [&](int i, int piece) {
      const int slot = rest.slot[i];
      const T* from = l.conv_state + (static_cast<int64_t>(slot < 0 ? 0 : slot) * d + channel) * 3;
      copy_async(rest.past[i] + piece * 16, reinterpret_cast<const char*>(from) + piece * 16, slot >= 0);
    });
    const auto span = [&](void* to, const float* from, int begin, int count) {
      const int i = thread - begin;
      if (i >= 0 && i < count / 4)
        copy_async(static_cast<float*>(to) + 4 * i, from ? from + 4 * i : l.D, from != nullptr);
    };
    span(rest.taps, l.conv_weight + channel * 4, 0, channels * 4);
    span(rest.bias, l.conv_bias ? l.conv_bias + channel : nullptr, 64, channels);
    span(rest.dt_bias, l.dt_bias + channel, 96, channels);
    span(rest.D, l.D + channel, 128, channels);
    end_copy_group();
  }

  // Where the block that had these columns and that part of k has left them of this block's row.
  __device__ __forceinline__ int64_t mixed_at(int column, int part) const {
    return (static_cast<int64_t>(column / columns * kGridParts + part) * s.count + block) * columns +
           (column % columns ^ apart<columns>(block));
  }
  // This block's row: the quarters of what the layer before has added.
  __device__ __forceinline__ void add_mixed(const GridLayer<T>& before) {
    wait_until_heard();
    float2 part[Size::pairs][kGridParts];
#pragma unroll
    for (int i = 0; i < Size::pairs; i++)
#pragma unroll
      for (int j = 0; j < kGridParts; j++)
        part[i][j] = __ldcg(reinterpret_cast<const float2*>(s.mixed + mixed_at(2 * (thread + i * kGridThreads), j)));
#pragma unroll
    for (int i = 0; i < Size::pairs; i++) {
      float2 sum = part[i][0];
#pragma unroll
      for (int j = 1; j < kGridParts; j++) sum.x += part[i][j].x, sum.y += part[i][j].y;
      const uint32_t bits = pair_bits(sum.x, sum.y, T{});
      *reinterpret_cast<uint32_t*>(before.y + static_cast<int64_t>(block) * m + 2 * (thread + i * kGridThreads)) = bits;
      const float2 y = pair_from(bits, T{});
      residual[i].x += y.x, residual[i].y += y.y;
    }
  }
  __device__ __forceinline__ void normalize(const GridLayer<T>& l, const float2 (&norm)[Size::pairs]) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Size::pairs; i++)
      squares = fmaf(residual[i].x, residual[i].x, fmaf(residual[i].y, residual[i].y, squares));
#pragma unroll
    for (int i = 16; i > 0; i /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, i);
    if (lane == 0) rest.squares[warp] = squares;
    meet();
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kGridThreads / 32; i++) squares += rest.squares[i];
    const float scale = rsqrtf(squares / static_cast<float>(m) + s.eps);
    uint32_t bits[Size::pairs];
    const int64_t first = static_cast<int64_t>(block) * m + 2 * thread;
#pragma unroll
    for (int i = 0; i < Size::pairs; i++) {
      bits[i] = pair_bits(residual[i].x * (scale * norm[i].x), residual[i].y * (scale * norm[i].y), T{});
      *reinterpret_cast<uint32_t*>(s.to_normed + first + 2 * i * kGridThreads) = bits[i];
    }
    meet();
    if (warp == 0) tell(s.told, kNormedRows, round);
#pragma unroll
    for (int i = 0; i < Size::pairs; i++) {
      *reinterpret_cast<uint32_t*>(l.normed + first + 2 * i * kGridThreads) = bits[i];
      *reinterpret_cast<float2*>(l.sum + first + 2 * i * kGridThreads) = residual[i];
    }
  }

  // Every other stage is a warpgroup's. It waits for the others, too, and gives them back: a barrier's parity
  // tells a stage from the one before it, and not from the one before that.
  template <int Stages, class Ring>
  __device__ __forceinline__ void multiply_stages(Ring& act, float (&c)[columns / 2]) {
#pragma unroll
    for (int i = 0; i < columns / 2; i++) c[i] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < Stages; i++) {
      const uint32_t b = shared_address(weights.wait()), a = shared_address(act.wait());
      if (i % 2 == group) {
        __syncwarp();
        begin_products();
#pragma unroll
        for (int j = 0; j < 8; j++)
          multiply(c, tile_at(a + j / 4 * Size::box + j % 4 * 32),
                   tile_at(b + j / 4 * columns * 128 + j % 4 * 32), T{});
        end_products();
        wait_for_products();
      }
      act.release(act.at.stage);
      weights.release(weights.at.stage);
      act.next();
      weights.next();
    }
  }
  // Sums of both warpgroups: each gets those of its half of every 16 rows, c[4 j + 2 group] and the next. All have
  // met before: what lay there has been read.
  __device__ __forceinline__ void join(float (&c)[columns / 2], float2 (&joined)[kEights]) {
    auto* const place = reinterpret_cast<float4*>(act_memory) + thread % 128;  // [group][kEights / 2][128]
    const auto of = [&](int j, int h) {
      return h ? float2{c[4 * j + 2], c[4 * j + 3]} : float2{c[4 * j], c[4 * j + 1]};
    };
#pragma unroll
    for (int j = 0; j < kEights; j += 2) {
      const float2 a = of(j, 1 - group), b = of(j + 1, 1 - group);
      place[(group * (kEights / 2) + j / 2) * 128] = {a.x, a.y, b.x, b.y};
    }
    meet();
#pragma unroll
    for (int j = 0; j < kEights; j += 2) {
      const float4 other = place[((1 - group) * (kEights / 2) + j / 2) * 128];
      const float2 a = of(j, group), b = of(j + 1, group);
      joined[j] = {a.x + other.x, a.y + other.y}, joined[j + 1] = {b.x + other.z, b.y + other.w};
    }
  }
};

#endif

}  // namespace ss::cuda
