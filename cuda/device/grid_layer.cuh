// What the kernel of grid_layers.cuh works on: a model's sizes, its layers' tensors, what its blocks leave each
// other in memory and how they tell, and a block's shared memory.
#pragma once
#include <cuda.h>
#include <stdint.h>

#include "fault.cuh"
#include "mamba_layer.cuh"
#include "pack.cuh"
#include "tile_ring.cuh"
#include "warpgroup.cuh"

namespace ss::cuda {

constexpr int kGridBlocks = 128;   // that must run at once, one on a multiprocessor
constexpr int kGridRows = 64;      // sequences: the 64-row side of wgmma
constexpr int kGridThreads = 256;  // that compute: two warpgroups
constexpr int kGridAskers = 4;     // warps that bring weights, activations, states, and that send
constexpr int kGridParts = 4;      // of out_proj's k

// What blocks have done, as they tell each other.
enum Told { kShared, kAdded, kGatedRows, kMixed, kNormedRows, kTolds };
constexpr int kToldCopies = 4;  // each for a quarter of the blocks: whoever looks stands in fewer others' way
constexpr int kToldWords = kTolds * kToldCopies * kGridBlocks;  // and behind them the round

// Of a model m wide, as published.
template <int Model>
struct GridSizes {
  static constexpr int m = Model, d = 2 * m, r = m / 16, k = r + 2 * kLayerStates;
  static constexpr int channels = d / kGridBlocks;  // of a block
  static constexpr int columns = 2 * channels;  // rows of in_proj a block has, x and z, and of out_proj
  static constexpr int half = k / 2;            // columns of dbc of a warpgroup
  static constexpr int units = (channels + 15) / 16;  // of u, 16 columns each
  static constexpr int depth = 128;                   // columns of k of a stage, two boxes
  static constexpr int in_stages = m / depth, out_stages = d / kGridParts / depth;
  static constexpr int rank_boxes = (r + 63) / 64, dbc_boxes = (k + 63) / 64;
  static constexpr int box = kGridRows * 128;  // bytes, of activations
  static constexpr int state_bytes = kGridRows * channels * kLayerStates * 2;
  // Of activations: before there are states, their place is part of the ring.
  using Act = TileRing<3, 2 * box>;
  using Wide = TileRing<3 + state_bytes / (2 * box), 2 * box>;
  static constexpr int weight_bytes = columns * 2 * depth;
  static constexpr int past_bytes = channels * 3 * 2;
  static constexpr int past_pitch = past_bytes % 128 == 64 ? past_bytes + 16 : past_bytes;  // keeps banks apart
  // Where what lies between the two products has its place, in the activations' ring.
  static constexpr int u_at = 3 * box, xz_at = u_at + box, pitch = columns + 8, xz_bytes = kGridRows * pitch * 2;
  static constexpr int A_at = xz_at + xz_bytes, A_pitch = kLayerStates + 4;
  static constexpr int dt_pitch = channels > 24 ? 40 : 24;  // f32, where dbc's first columns were
  static constexpr int y_at = r / 64 > 1 ? kGridRows * dt_pitch * 4 : 2 * box;
  static constexpr int pairs = m / (2 * kGridThreads);  // of a thread's columns of a row
  static_assert(A_at + channels * A_pitch * 4 <= 3 * 2 * box && dbc_boxes * box <= u_at &&
                kGridRows * columns * 4 <= u_at && 2 * kGridRows * half * 4 <= state_bytes &&
                kGridRows * dt_pitch * 4 <= r / 64 * box && y_at % 128 == 0 &&
                y_at + kGridRows * columns <= (r / 64 > 1 ? r / 64 : 3) * box && half * 128 <= weight_bytes &&
                rank_boxes * channels * 128 <= weight_bytes && in_stages % 2 == 0 && out_stages % 2 == 0);
};

template <class T>
struct GridLayer {
  CUtensorMap in_proj, x_proj, dt_proj, out_proj;
  const float* norm;                     // [m]
  const float *conv_weight, *conv_bias;  // [d, 4], [d] or null
  T* conv_state;                         // [p, d, 3]
  const float *dt_bias, *A, *D;          // [d], [d, 16], [d]
  void* scan_state;                      // [p, d, 16]
  float* sum;                            // [b, m]
  T *normed, *xz, *u, *dbc, *gated, *y;  // [b, ..]: m, 2 d, d, k, d, m
};

template <class T>
struct GridLayers {
  GridLayer<T> layer[kMostManyLayers];
  CUtensorMap normed, dbc, gated, own_gated;  // of what blocks leave each other, the last as a block writes it:
  T *to_normed, *to_dbc, *to_gated;  // [b, m], [b, k], [b, d]
  float *shares, *mixed;  // [blocks, 2, b, k / 2], [parts of columns, parts of k, b, columns]
  uint32_t* told;                    // [kTolds, copies, blocks], and the round of the launch before
  const T* x;                        // [b, m] or null
  const float* residual;             // [b, m]
  const int32_t *offsets, *slots;
  int64_t pool;
  int layers, count, tall;  // count: sequences; tall: rows of a box, the next multiple of 8
  float eps;
  Fault *bad_offset, *bad_slot;
};

// Rows of Columns f32 that a block leaves others: column i of a row lies at i ^ this, which keeps banks apart.
template <int Columns>
__device__ __forceinline__ int apart(int row) {
  return Columns % 32 == 0 ? row % 4 * 8 : row / 2 % 2 * 8;
}

// After the rings.
template <class Size>
struct alignas(16) GridMemory {
  char past[kGridRows][Size::past_pitch];
  float4 taps[Size::channels];
  float bias[Size::channels], dt_bias[Size::channels], D[Size::channels];
  float squares[kGridThreads / 32];
  int slot[kGridRows];
  uint64_t act_full[3], act_free[3], wide_full[Size::Wide::kStages], wide_free[Size::Wide::kStages];
  uint64_t states_full[2], states_free[2], states_wanted, states_gone;
  // What one warp has heard; the place of the activations' ring may be filled; dbc has come. What is to be sent lies
  // there; and has been read; y has been told.
  uint64_t heard, open, dbc_full, staged, taken, y_told;
};

template <class Size>
constexpr int grid_stages() {
  constexpr int kLeft = 227 * 1024 - Size::Act::kStages * Size::Act::kBytes - Size::state_bytes -
                        int{sizeof(GridMemory<Size>)};
  constexpr int kFit = kLeft / (Size::weight_bytes + 16);
  return kFit < 16 ? kFit : 16;
}
template <class Size>
using GridWeights = TileRing<grid_stages<Size>(), Size::weight_bytes>;
template <class Size>
struct GridWhole {
  char act[Size::Act::kStages * Size::Act::kBytes];
  char states[Size::state_bytes];
  char weights[GridWeights<Size>::kStages * GridWeights<Size>::kBytes];
  GridMemory<Size> rest;
  uint64_t weights_full[GridWeights<Size>::kStages], weights_free[GridWeights<Size>::kStages];
};

// By the first lanes of a warp, after the block's meeting: all that the block has written before is there.
__device__ __forceinline__ void tell(uint32_t* told, Told what, uint32_t round) {
#if __CUDA_ARCH__ >= 900
  const int lane = threadIdx.x % 32;
  if (lane < kToldCopies)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(told + (what * kToldCopies + lane) * kGridBlocks +
                                                             blockIdx.x),
                 "r"(round)
                 : "memory");
#endif
}
// The same by one thread, of copies that it has waited for.
__device__ __forceinline__ void tell_of_copies(uint32_t* told, Told what, uint32_t round) {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.acq_rel.gpu;" ::: "memory");  // having waited is not enough for all to see them
#pragma unroll
  for (int i = 0; i < kToldCopies; i++)
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(told + (what * kToldCopies + i) * kGridBlocks +
                                                             blockIdx.x),
                 "r"(round)
                 : "memory");
#endif
}
// By a whole warp, until `count` blocks from `first` on have told.
__device__ __forceinline__ void hear(const uint32_t* told, Told what, int first, int count, uint32_t round) {
#if __CUDA_ARCH__ >= 900
  const int lane = threadIdx.x % 32;
  const uint32_t* from =
      told + (what * kToldCopies + static_cast<int>(blockIdx.x) % kToldCopies) * kGridBlocks + first + lane;
  bool all = false;
  while (!__all_sync(0xffffffffu, all)) {
    uint32_t v[kGridBlocks / 32];
#pragma unroll
    for (int i = 0; i < kGridBlocks / 32; i++) {
      v[i] = round;
      if (lane + 32 * i < count)
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v[i]) : "l"(from + 32 * i) : "memory");
    }
    all = true;
#pragma unroll
    for (int i = 0; i < kGridBlocks / 32; i++) all = all && static_cast<int32_t>(v[i] - round) >= 0;
  }
#endif
}
// From shared memory, as its own group of copies.
__device__ __forceinline__ void copy_back(void* to, const void* from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
               "r"(bytes)
               : "memory");
#endif
}
// A box, back to where a map says.
__device__ __forceinline__ void send_box(const CUtensorMap& map, int column, int row, const void* from) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(column), "r"(row)
               : "memory");
#endif
}
// Until those of this thread have been read, or Written.
template <bool Written>
__device__ __forceinline__ void wait_for_copies_back() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  if constexpr (Written)
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  else
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
__device__ __forceinline__ void ask_for_box(void* to, const CUtensorMap& map, int column, int row, uint64_t* barrier,
                                            uint64_t policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(row), "l"(policy)
      : "memory");
#endif
}
// What others have written, and this thread has heard of, is seen by the copies that it asks for from now on.
__device__ __forceinline__ void show_to_engine() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

}  // namespace ss::cuda
