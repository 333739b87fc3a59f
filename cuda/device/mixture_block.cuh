// What a block does in a layer of either kind (mixture_layers.cuh): its part of the residual and of the
// norm, products with the weights that come through the ring, and words to and from all blocks.
#pragma once
#include "mamba_layer_phases.cuh"
#include "mixture_layer.cuh"

namespace ss::cuda::mixture {

template <class T, class Size>
struct LayerBlock {
  using OutRows = typename Size::OutRows;
  static constexpr int m = Size::m, out_rows = Size::out_rows;
  static constexpr int kMixed = kLayerBlocks * Size::mixed_words;
  static constexpr int kSums = (kMixed + kLayerThreads - 1) / kLayerThreads;

  const Layers<T>& s;
  LayerMemory<Size>& shared;
  Ring ring;
  const LayerWords<Size> words{s.words};
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, block = blockIdx.x;
  const int first_row = OutRows::begin(block), rows = OutRows::count(block);
  uint32_t round;
  float sum[kSums][6];  // the residual

  // Of which values of the residual the i-th word of this thread tells: [begin, end), at most six.
  __device__ int sum_begin(int i) const {
    const int word = thread + i * kLayerThreads;
    return word < kMixed ? OutRows::begin(word / Size::mixed_words) + word % Size::mixed_words * 6 : m;
  }
  __device__ int sum_end(int i) const {
    const int word = thread + i * kLayerThreads;
    return word < kMixed ? OutRows::begin(word / Size::mixed_words + 1) : 0;
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 6; j++) {
        const int at = sum_begin(i) + j;
        sum[i][j] = 0.0f;
        if (at >= sum_end(i)) continue;
        sum[i][j] = s.residual[at];
        if (s.x) sum[i][j] += to_float(s.x[at]);
      }
  }

  __device__ __forceinline__ void load_norm(const float* weight) {
    for (int i = thread * 4; i < m; i += kLayerThreads * 4) copy_async(shared.norm + i, weight + i, true);
    end_copy_group();
  }
  // The residual with what the layer before has added.
  __device__ __forceinline__ void add_mixed() {
    Word w[kSums];
    await(w, words.mixed + thread, kLayerThreads, (kMixed - thread + kLayerThreads - 1) / kLayerThreads,
          round - 1);
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) {
        const float2 add = pair_floats(w[i].bits[j], T{});
        const int at = sum_begin(i) + 2 * j;
        if (at < sum_end(i)) sum[i][2 * j] += add.x;
        if (at + 1 < sum_end(i)) sum[i][2 * j + 1] += add.y;
      }
  }
  // The normed row, to act; this block's part of it and of the residual to memory.
  __device__ __forceinline__ void norm(float* to_sum, T* to_normed) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kSums; i++)
#pragma unroll
      for (int j = 0; j < 6; j++) squares = fmaf(sum[i][j], sum[i][j], squares);
    squares = warp_sum(squares);
    if (lane == 0) shared.squares[warp] = squares;
    wait_copy_groups<0>();
    sync_layer();
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kLayerWarps; i++) all += shared.squares[i];
    const float scale = rsqrtf(all / static_cast<float>(m) + s.eps);
    T* act = reinterpret_cast<T*>(shared.act);
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      const bool own = sum_begin(i) >= first_row && sum_begin(i) < first_row + rows;
#pragma unroll
      for (int j = 0; j < 6; j += 2) {
        const int at = sum_begin(i) + j;
        if (at >= sum_end(i)) continue;
        if constexpr (OutRows::even && out_rows % 2 == 0) {
          const float2 w = *reinterpret_cast<const float2*>(shared.norm + at);
          shared.act[at / 2] = pair_bits(sum[i][j] * (scale * w.x), sum[i][j + 1] * (scale * w.y), T{});
          if (!own) continue;
          *reinterpret_cast<float2*>(to_sum + at) = {sum[i][j], sum[i][j + 1]};
          *reinterpret_cast<uint32_t*>(to_normed + at) = shared.act[at / 2];
        } else {
#pragma unroll
          for (int one = 0; one < 2; one++) {
            if (at + one >= sum_end(i)) continue;
            from_float(act[at + one], sum[i][j + one] * (scale * shared.norm[at + one]));
            if (own) to_sum[at + one] = sum[i][j + one], to_normed[at + one] = act[at + one];
          }
        }
      }
    }
    sync_layer();
  }

  // Sums of `count` rows of weights with Columns columns of act, each warp's share of the columns.
  template <int Columns>
  __device__ __forceinline__ void multiply(int count) {
    using C = Cut<Columns, Size::columns>;
    constexpr int kSteps = (C::most + kLayerWarps - 1) / kLayerWarps, kStepBytes = 2 * kStepColumns;
    const int g = lane / 4, offset = warp * kStepBytes + lane % 4 * 16, each = tile_rows(count);
    const char* act = reinterpret_cast<const char*>(shared.act) + offset;
#pragma unroll 1
    for (int row = 0; row < count; row += each) {
      float c[2][4] = {};
#pragma unroll 1
      for (int tile = 0; tile < C::tiles; tile++) {
        const int begin = C::begin(tile), steps = C::begin(tile + 1) - begin;
        uint4 a[kSteps], w[kSteps];
        const auto there = [&](int i) { return C::even || i * kLayerWarps + warp < steps; };
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          a[i] = uint4{};
          if (g == 0 && there(i))
            a[i] = *reinterpret_cast<const uint4*>(act + (begin + i * kLayerWarps) * kStepBytes);
        }
        ring.wait();
        const char* from = ring.tile() + g * ring.pitch + offset;
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          w[i] = uint4{};
          if (there(i)) w[i] = *reinterpret_cast<const uint4*>(from + i * kLayerWarps * kStepBytes);
        }
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          mma(c[0], a[i].x, 0, a[i].y, 0, w[i].x, w[i].y, T{});
          mma(c[1], a[i].z, 0, a[i].w, 0, w[i].z, w[i].w, T{});
        }
        ring.give_back();
      }
      __syncwarp();  // these go over what a tile that is not full left there
      if (g == 0)
        *reinterpret_cast<float2*>(&shared.sums[warp][row + 2 * (lane % 4)]) = {c[0][0] + c[1][0],
                                                                                c[0][1] + c[1][1]};
    }
    sync_layer();
  }
  __device__ __forceinline__ float added(int row) const {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kLayerWarps; i++) all += shared.sums[i][row];
    return all;
  }

  // Six of this block's values as the i-th of its words.
  __device__ __forceinline__ void tell(Word* to, const float* values, int i) const {
    const float* six = values + 6 * i;
    publish(to + i, pair_bits(six[0], six[1], T{}), pair_bits(six[2], six[3], T{}),
            pair_bits(six[4], six[5], T{}), round);
  }
  // All blocks' rows of Each words, to act.
  template <class Rows, int Each>
  __device__ __forceinline__ void gather(const Word* from) {
    constexpr int kAll = kLayerBlocks * Each, kOwn = (kAll + kLayerThreads - 1) / kLayerThreads;
    Word w[kOwn];
    await(w, from + thread, kLayerThreads, (kAll - thread + kLayerThreads - 1) / kLayerThreads, round);
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int word = thread + i * kLayerThreads, of = word / Each, pair = word % Each * 3;
      if (word >= kAll) continue;
#pragma unroll
      for (int j = 0; j < 3; j++)
        if (2 * (pair + j) < Rows::count(of)) shared.act[Rows::begin(of) / 2 + pair + j] = w[i].bits[j];
    }
    sync_layer();
  }
  // What the layer adds to the residual: this block's rows of its last product, to all.
  template <class F>
  __device__ __forceinline__ void leave(T* y, F&& finish) {
    if (warp > 0) return;
    if (lane < rows) {
      T value;
      from_float(value, finish(added(lane), first_row + lane));
      y[first_row + lane] = value;
      shared.mixed[lane] = to_float(value);
    }
    __syncwarp();
    if (lane < Size::mixed_words) tell(words.mixed + block * Size::mixed_words, shared.mixed, lane);
  }
};

}  // namespace ss::cuda::mixture
