// What the kernel of mixture_layers.cuh works on: a model's sizes, its layers' tensors, where the words
// of its blocks lie, and its shared memory.
#pragma once
#include "mamba_layer.cuh"
#include "norm_route.cuh"

namespace ss::cuda::mixture {

constexpr int kStepColumns = 32;  // of a matrix, that a warp multiplies at once
// Clocks for each KiB that a block asks for before it is needed: of a guess, and into the L2. More of it at a
// time would stand in the way of the blocks' words.
constexpr int kGuessClocks = 70, kAskClocks = 100;

// Count things over the blocks, Unit by Unit. Where they do not come out even some blocks have a unit
// more: other ones where they are dealt Late, so that the same blocks do not have more of everything.
template <int Count, int Unit, bool Late = false>
struct Dealt {
  static constexpr int units = Count / Unit;
  static constexpr bool even = units % kLayerBlocks == 0;
  static constexpr int most = (units + kLayerBlocks - 1) / kLayerBlocks * Unit;  // of a block
  static_assert(Count % Unit == 0);

  __device__ static int begin(int block) {
    if constexpr (even) return block * most;
    return (block * units + (Late ? kLayerBlocks - 1 : 0)) / kLayerBlocks * Unit;
  }
  __device__ static int count(int block) {
    return even ? most : begin(block + 1) - begin(block);
  }
};

// Words that all blocks read are there several times, each copy for some of the blocks, and one in 32 bytes:
// the slices of the L2 that hold them have less to answer at once.
constexpr int kCopies = 4, kApart = 2;

// How rows of Columns are cut into tiles of at most Most of them.
template <int Columns, int Most>
struct Cut {
  static constexpr int steps = Columns / kStepColumns, tiles = (Columns + Most - 1) / Most;
  static_assert(Columns % kStepColumns == 0);
  static __host__ __device__ constexpr int begin(int tile) { return tile * steps / tiles; }  // in steps
  static constexpr int most = (steps + tiles - 1) / tiles;  // of a tile
  static constexpr bool even = steps % (tiles * kLayerWarps) == 0;
};

// Of a model m wide with experts h wide: all else follows from these, and is known when compiled.
template <int Model, int Hidden>
struct LayerSizes {
  static constexpr int m = Model, d = 2 * m, h = Hidden;
  static constexpr int r = (m / 16 + 15) / 16 * 16, k = r + 2 * kLayerStates;  // r: filled up
  static constexpr int unit = d / kLayerBlocks % 4 == 2 ? 2 : 4;  // channels read at once
  using Channels = Dealt<d, unit>;
  using OutRows = Dealt<m, 1>;
  using HiddenRows = Dealt<h, 2, true>;
  static constexpr int channels = Channels::most, out_rows = OutRows::most;
  static constexpr int hidden_rows = HiddenRows::most;
  static constexpr int columns = m;  // of a tile of in_proj or of the first matrix: all
  static constexpr int stage = Ring::stage_bytes(columns);
  // Of out_proj and the second matrix a tile is all rows of a block, and as many columns as find room.
  static constexpr int long_columns = ((stage + kRowGap) / out_rows - kRowGap) / 2 / 64 * 64;
  static constexpr int long_pitch = 2 * long_columns + kRowGap;
  static constexpr int act = h > d ? h : d;
  static constexpr int sums = (2 * (channels > hidden_rows ? channels : hidden_rows) + 7) / 8 * 8;
  // Words of the exchange: three f32 or six halves each.
  static constexpr int dbc_words = (k + 2) / 3;  // of a block
  static constexpr int y_words = (channels + 5) / 6, mixed_words = (out_rows + 5) / 6;
  static constexpr int hidden_words = (hidden_rows + 5) / 6;
  static_assert(k <= 30 * kLayerWarps && channels <= 64 && hidden_rows <= 32 && out_rows <= 16);
  static_assert(kCopies * hidden_words <= 32 && kCopies * mixed_words <= 32);
  static_assert(columns % 64 == 0 && sums >= (out_rows + 7) / 8 * 8);
};

template <class T>
using MambaLayer = ss::cuda::Layer<T>;

template <class T>
struct ExpertLayer {
  const float *norm, *router, *router_bias;  // [m], [e, m], [e] or null
  const T *up, *down;                        // [e, h or 2 h, m], [e, m, h]
  const float *up_bias, *down_bias;          // [e, h or 2 h] or null, [e, m] or null
  float *sum, *logits, *weight;              // [m], [e], [1]
  int32_t* expert;                           // [1]
  T *normed, *hidden, *y;                    // [m], [h], [m]
  int e, kind;
  bool gated, sigmoid, normalize;
};

template <class T>
struct Layer {
  bool has_experts;
  union {
    MambaLayer<T> mamba;
    ExpertLayer<T> experts;
  };
};

template <class T>
struct Layers {
  Layer<T> layer[kMostLayers];
  const T* x;                      // [m] or null
  const float* residual;           // [m]
  const int32_t *offsets, *slots;  // null where no layer is Mamba
  int64_t pool;
  Word* words;  // the first holds the number of the last round
  int layers, stages;
  float eps;
  Fault *bad_offset, *bad_slot;
  Head<T> head;
};

// dbc, each block's y, what a layer adds to the residual and an expert's hidden row, all of them kCopies times
// and kApart; and each block's shares of dbc, each of which has one reader.
template <class Size>
struct LayerWords {
  Word *dbc, *y, *mixed, *hidden, *shares;

  static constexpr int count =
      kApart + kLayerBlocks * Size::dbc_words +
      kCopies * kApart *
          (Size::dbc_words + kLayerBlocks * (Size::y_words + Size::mixed_words + Size::hidden_words));
  __device__ explicit LayerWords(Word* words) {
    constexpr int kOfBlocks = kCopies * kApart * kLayerBlocks;
    dbc = words + kApart;
    y = dbc + kCopies * kApart * Size::dbc_words;
    mixed = y + kOfBlocks * Size::y_words;
    hidden = mixed + kOfBlocks * Size::mixed_words;
    shares = hidden + kOfBlocks * Size::hidden_words;
  }
};

// Shared memory, after the ring.
template <class Size>
struct alignas(16) LayerMemory {
  uint64_t full[kMostStages], free[kMostStages];
  uint64_t routed, normed, guessed;  // barriers: logits, the row and its scale, guessed logits are there
  alignas(16) uint32_t act[Size::act / 2];  // halves
  alignas(16) float norm[Size::m];
  alignas(16) float row[Size::m];  // the residual, where the next layer's choice is guessed
  float sums[kLayerWarps][Size::sums];
  alignas(16) float u[Size::channels];
  alignas(16) float dbc[3 * Size::dbc_words + 2];
  float z[Size::channels], squares[kLayerWarps], logits[kMostExperts], scale, guess[kLayerWarps];
  float y[6 * Size::y_words], mixed[6 * Size::mixed_words], hidden[6 * Size::hidden_words + 1];
};

// a . b of two halves.
template <class T>
__device__ __forceinline__ float add_two(float sum, uint32_t a, float2 b, T) {
  const float2 both = pair_floats(a, T{});
  return fmaf(both.y, b.y, fmaf(both.x, b.x, sum));
}

// Of `count` rows, those of a tile: about as many of each, and an even number.
__device__ __forceinline__ int tile_rows(int count) {
  const int tiles = (count + kTileRows - 1) / kTileRows;
  return ((count + tiles - 1) / tiles + 1) / 2 * 2;
}

}  // namespace ss::cuda::mixture
