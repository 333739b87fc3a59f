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
  // This thread's of `count` words, thread + i kLayerThreads, in this block's copy of them.
  template <int N>
  __device__ __forceinline__ void hear(Word (&w)[N], const Word* from, int count, uint32_t of) const {
    await(w, from + (block % kCopies * count + thread) * kApart, kLayerThreads * kApart,
          (count - thread + kLayerThreads - 1) / kLayerThreads, of);
  }
  // The residual with what the layer before has added.
  __device__ __forceinline__ void add_mixed() {
    Word w[kSums];
    hear(w, words.mixed, kMixed, round - 1);
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
  // The normed row, to act; this block's part of it and of the residual to memory. All of the residual
  // to `row`, if the next layer's choice will be guessed.
  __device__ __forceinline__ void norm(float* to_sum, T* to_normed, bool guesses) {
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
    if (guesses) {
      if (thread == 0) shared.scale = scale;
#pragma unroll
      for (int i = 0; i < kSums; i++)
#pragma unroll
        for (int j = 0; j < 6; j++)
          if (sum_begin(i) + j < sum_end(i)) shared.row[sum_begin(i) + j] = sum[i][j];
    }
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
    if (guesses && thread == 0) arrive(&shared.normed);
  }

  // Products on the tensor cores, of 8 rows by 32 columns each: a lane's 16 bytes of row g are rows g and
  // g + 8 of the instruction's left side, half of its columns each, whose activations are the first and the
  // second column of its right side. So the weights are multiplied as they come, and a row's sum is
  // c[0] + c[3] of the lane with q = 0.
  template <int Steps, bool Even>  // steps of a warp; whether all warps have as many
  struct Acts {
    uint32_t bits[Steps][2];

    // Step i of `steps` from column begin · 32 on is that of warp i % kLayerWarps.
    __device__ __forceinline__ void load(const LayerBlock& b, int begin, int steps) {
      constexpr int kWords = kStepColumns / 2;
      const int g = b.lane / 4;
      const uint32_t* from = b.shared.act + (begin + b.warp) * kWords + b.lane % 4 * 4 + g;
#pragma unroll
      for (int i = 0; i < Steps; i++) {
        const bool there = g < 2 && (Even || i * kLayerWarps + b.warp < steps);
        bits[i][0] = there ? from[i * kLayerWarps * kWords] : 0;
        bits[i][1] = there ? from[i * kLayerWarps * kWords + 2] : 0;
      }
    }
    // Row g of a tile, where it is one.
    __device__ __forceinline__ void read(uint4 (&w)[Steps], const LayerBlock& b, const char* row, bool is_row,
                                         int steps) const {
#pragma unroll
      for (int i = 0; i < Steps; i++) {
        w[i] = uint4{};
        if (is_row && (Even || i * kLayerWarps + b.warp < steps))
          w[i] = *reinterpret_cast<const uint4*>(row + i * kLayerWarps * 2 * kStepColumns);
      }
    }
    __device__ __forceinline__ void multiply(float (&c)[4], const uint4 (&w)[Steps]) const {
#pragma unroll
      for (int i = 0; i < Steps; i++) mma(c, w[i].x, w[i].y, w[i].z, w[i].w, bits[i][0], bits[i][1], T{});
    }
  };
  // Sums of `count` rows of m weights with act, each warp's share of the columns.
  __device__ __forceinline__ void multiply_rows(int count) {
    constexpr int kAll = m / kStepColumns, kSteps = (kAll + kLayerWarps - 1) / kLayerWarps;
    const int g = lane / 4, q = lane % 4, each = tile_rows(count);
    Acts<kSteps, kAll % kLayerWarps == 0> act;
    act.load(*this, 0, kAll);
#pragma unroll 1
    for (int row = 0; row < count; row += each) {
      float c[4] = {};
      uint4 w[kSteps];
      ring.wait();
      act.read(w, *this, ring.tile() + g * ring.pitch + warp * 2 * kStepColumns + q * 16, true, kAll);
      act.multiply(c, w);
      ring.give_back();
      if (q == 0 && g < each) shared.sums[warp][row + g] = c[0] + c[3];
    }
    sync_layer();
  }
  // The same of this block's rows of out_proj or the second matrix, Columns wide: some columns of all rows at
  // a time.
  template <int Columns>
  __device__ __forceinline__ void multiply_columns() {
    using C = Cut<Columns, Size::long_columns>;
    constexpr int kSteps = (C::most + kLayerWarps - 1) / kLayerWarps, kHalves = (out_rows + 7) / 8;
    const int g = lane / 4, q = lane % 4;
    float c[kHalves][4] = {};
#pragma unroll 1
    for (int tile = 0; tile < C::tiles; tile++) {
      const int begin = C::begin(tile), steps = C::begin(tile + 1) - begin;
      Acts<kSteps, C::even> act;
      act.load(*this, begin, steps);
      uint4 w[kHalves][kSteps];
      ring.wait();
#pragma unroll
      for (int half = 0; half < kHalves; half++)
        act.read(w[half], *this,
                 ring.tile() + (8 * half + g) * Size::long_pitch + warp * 2 * kStepColumns + q * 16,
                 (half == 0 && out_rows > 8) || 8 * half + g < rows, steps);
#pragma unroll
      for (int half = 0; half < kHalves; half++) act.multiply(c[half], w[half]);
      ring.give_back();
    }
#pragma unroll
    for (int half = 0; half < kHalves; half++)
      if (q == 0 && 8 * half + g < rows) shared.sums[warp][8 * half + g] = c[half][0] + c[half][3];
    sync_layer();
  }
  // Passes by the tiles of so many rows.
  __device__ __forceinline__ void skip(int count) {
    const int each = tile_rows(count), tiles = (count + each - 1) / each;
    for (int tile = 0; tile < tiles; tile++) {
      ring.wait();
      ring.give_back();
    }
  }
  __device__ __forceinline__ float added(int row) const {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < kLayerWarps; i++) all += shared.sums[i][row];
    return all;
  }

  // This block's values as its Each words, six a word, to all copies of them: by the first threads.
  template <int Each>
  __device__ __forceinline__ void tell(Word* to, const float* values) const {
    if (thread >= kCopies * Each) return;
    const int i = thread % Each, copy = thread / Each;
    const float* six = values + 6 * i;
    publish(to + ((copy * kLayerBlocks + block) * Each + i) * kApart, pair_bits(six[0], six[1], T{}),
            pair_bits(six[2], six[3], T{}), pair_bits(six[4], six[5], T{}), round);
  }
  // All blocks' rows of Each words, to act.
  template <class Rows, int Each>
  __device__ __forceinline__ void gather(const Word* from) {
    constexpr int kAll = kLayerBlocks * Each, kOwn = (kAll + kLayerThreads - 1) / kLayerThreads;
    Word w[kOwn];
    hear(w, from, kAll, round);
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
      from_float(value, finish(added(lane)));
      y[first_row + lane] = value;
      shared.mixed[lane] = to_float(value);
    }
    __syncwarp();
    tell<Size::mixed_words>(words.mixed, shared.mixed);
  }
};

}  // namespace ss::cuda::mixture
