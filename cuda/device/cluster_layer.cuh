// What the kernel of cluster_layers.cuh works on: a model's sizes, its layers' tensors, a block's shared
// memory, and the ring through which all that is much comes.
#pragma once
#include <cuda.h>
#include <stdint.h>

#include "cluster.cuh"
#include "fault.cuh"
#include "mamba_layer.cuh"
#include "stochastic.cuh"
#include "weight_ring.cuh"

namespace ss::cuda {

constexpr int kClusterBlocks = 16;  // one on a multiprocessor
constexpr int kClusterStages = 14;  // at most: a barrier of the block each, from 1 on
// What blocks send each other in a layer. The bytes themselves tell that they have come.
enum Meeting { kSquares, kNormed, kShares, kDbc, kGated, kMeetings };

// Of a model m wide, as published, and 8 * Tiles sequences of a cluster.
template <int Model, int Tiles>
struct ClusterSizes {
  static constexpr int m = Model, d = 2 * m, r = m / 16, k = r + 2 * kLayerStates;
  static constexpr int channels = d / kClusterBlocks, out_rows = m / kClusterBlocks;  // of a block
  static constexpr int warps = channels / 8, threads = 32 * warps;  // and a warp that fills the ring
  static constexpr int rows = 8 * Tiles;
  // Of dbc's rows a block adds up the shares of every 16th.
  static constexpr int owned = (rows + kClusterBlocks - 1) / kClusterBlocks;
  // A stage of the ring: these columns of the block's rows of in_proj, or four times as many of those of
  // out_proj, a box each.
  static constexpr int columns = 64, boxes = 2 * channels / out_rows;
  static constexpr int stage_bytes = 2 * channels * columns * 2;
  static constexpr int in_stages = m / columns, out_stages = d / (boxes * columns);
  static constexpr int conv_bytes = channels * (kLayerTaps - 1) * 2;  // of a sequence
  static constexpr int conv_pass = threads / (channels / 4);          // sequences at a time
  static constexpr int conv_rows = stage_bytes / (conv_pass * conv_bytes) * conv_pass;
  // Pitches of rows, in elements, that keep banks apart.
  static constexpr int norm_pitch = out_rows + 8, y_pitch = channels + 8;
  static constexpr int xz_pitch = 2 * channels + 8, u_pitch = channels | 32, share_pitch = k + 4;
  static constexpr int dbc_pitch = k / 2 % 16 == 8 ? k : k + 16, sum_pitch = out_rows + 4;
  static_assert(boxes == 4 && warps == out_rows / 16 * boxes && d % (boxes * columns) == 0 &&
                conv_pass == 16 && conv_rows >= 16 && r % 16 == 0 && channels % 32 == 0);

  template <class S>
  static constexpr int state_rows = stage_bytes / (channels * kLayerStates * int{sizeof(S)});
};

template <class T>
struct ClusterLayer {
  CUtensorMap in_proj, out_proj;         // boxes of 64 columns by a block's rows
  const float* norm;                     // [m]
  const float *conv_weight, *conv_bias;  // [d, 4], [d] or null
  T* conv_state;                         // [p, d, 3]
  const T *x_proj, *dt_weight;           // [k, d], [d, r]
  const float *dt_bias, *A, *D;          // [d], [d, 16], [d]
  void* scan_state;                      // [p, d, 16]
  float* sum;                            // [b, m]
  T *normed, *xz, *u, *dbc, *gated, *y;  // [b, ..]: m, 2 d, d, k, d, m
};

template <class T>
struct ClusterLayers {
  ClusterLayer<T> layer[kMostManyLayers];
  const T* x;             // [b, m] or null
  const float* residual;  // [b, m]
  const int32_t *offsets, *slots;
  int64_t pool;
  int layers, stages, count;  // count: sequences
  float eps;
  Fault *bad_offset, *bad_slot;
};

// Shared memory, after the ring. What lies in one place is never needed together.
template <class T, class Size>
struct alignas(128) ClusterMemory {
  union {  // of each block, one after the other
    struct {
      T normed[kClusterBlocks][Size::rows][Size::norm_pitch];
      float share[Size::rows][Size::share_pitch];  // of dbc, this block's alone
    };
    T y[kClusterBlocks][Size::rows][Size::y_pitch];
  };
  union {
    struct {
      T xz[Size::rows][Size::xz_pitch];  // x becomes delta
      T u[Size::rows][Size::u_pitch];
      float shares[Size::owned][kClusterBlocks][Size::k];
    } early;
    float sums[Size::boxes][Size::rows][Size::sum_pitch];  // of out_proj
  };
  T dbc[Size::rows][Size::dbc_pitch];
  float squares[Size::rows][kClusterBlocks];
  int slot[Size::rows];
  uint64_t full[kClusterStages];
  uint64_t met[kMeetings];
};

// A box of a matrix, its rows of 128 bytes swizzled: chunk i of 16 bytes of row j lies at i ^ j % 8.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, int column, int row,
                                         uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}
__device__ __forceinline__ void copy_plain(void* to, const void* from, uint32_t bytes,
                                           uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}
// To another block of the cluster, or this one; `barrier` is this block's, and the other's is told.
__device__ __forceinline__ void send(void* to, const void* from, int bytes, uint64_t* barrier,
                                     unsigned block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(in_block(to, block)),
      "r"(shared_address(from)), "r"(bytes), "r"(in_block(barrier, block))
      : "memory");
#endif
}
__device__ __forceinline__ void send(float* to, float x, uint64_t* barrier, unsigned block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          in_block(to, block)),
      "r"(__float_as_uint(x)), "r"(in_block(barrier, block))
      : "memory");
#endif
}
__device__ __forceinline__ void send(void* to, uint2 x, uint64_t* barrier, unsigned block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
          in_block(to, block)),
      "r"(x.x), "r"(x.y), "r"(in_block(barrier, block))
      : "memory");
#endif
}
// What this thread wrote to shared memory is seen by copies that are asked for after the next barrier.
__device__ __forceinline__ void show_to_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The threads that compute.
template <class Size>
__device__ __forceinline__ void sync_cluster_step() {
  __syncwarp();
  asm volatile("barrier.cta.sync 15, %0;" ::"n"(Size::threads) : "memory");
}

// What comes through the ring, in the order in which it is needed: of each layer in_proj, the states of
// the convolution, those of the scan, out_proj. Used by all threads that compute.
template <class Size>
struct ClusterRing {
  char* memory;
  uint64_t* full;
  int stages;
  RingPlace at{};

  __device__ __forceinline__ const char* wait() {
    wait_barrier(&full[at.stage], at.parity);
    return memory + at.stage * Size::stage_bytes;
  }
  // A barrier of the block: every warp comes once, and only the one that fills waits. A warp whose lanes
  // are apart would come, and be counted, more than once.
  __device__ __forceinline__ void give_back() {
    __syncwarp();
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(at.stage + 1), "n"(Size::threads + 32)
                 : "memory");
    at.next(stages);
  }
};

// And filled by one warp.
template <class T, class S, class Size>
struct ClusterFiller {
  const ClusterLayers<T>& s;
  ClusterRing<Size> ring;
  const int* slot;
  int rows;
  bool full = false;  // every place has been asked for once
  const int lane = threadIdx.x % 32, block = static_cast<int>(cluster_rank());

  // The next place, once all have done with it.
  __device__ __forceinline__ char* place() const {
    if (full)
      asm volatile("barrier.cta.sync %0, %1;" ::"r"(ring.at.stage + 1), "n"(Size::threads + 32)
                   : "memory");
    return ring.memory + ring.at.stage * Size::stage_bytes;
  }
  __device__ __forceinline__ uint64_t* barrier() const { return &ring.full[ring.at.stage]; }
  __device__ __forceinline__ void next() {
    ring.at.next(ring.stages);
    if (ring.at.stage == 0) full = true;
  }
  // Rows of states that belong together in a stage, from their pools of `bytes` a block.
  __device__ __forceinline__ void fill_rows(int first, int most, const void* pool, int bytes) {
    char* const to = place();
    const int row = first + lane;
    const int own = lane < most && row < rows ? slot[row] : -1;
    const unsigned there = __ballot_sync(0xffffffffu, own >= 0);
    if (lane == 0) arrive_expecting(barrier(), static_cast<uint32_t>(__popc(there) * bytes));
    __syncwarp();
    if (own >= 0)
      copy_plain(to + lane * bytes,
                 static_cast<const char*>(pool) +
                     (static_cast<int64_t>(own) * kClusterBlocks + block) * bytes,
                 static_cast<uint32_t>(bytes), barrier());
    next();
  }
  __device__ __forceinline__ void fill() {
    for (int layer = 0; layer < s.layers; layer++) {
      const ClusterLayer<T>& l = s.layer[layer];
#pragma unroll 1
      for (int i = 0; i < Size::in_stages; i++) {
        char* const to = place();
        if (lane == 0) {
          const int column = i * Size::columns, row = block * Size::channels;
          arrive_expecting(barrier(), Size::stage_bytes);
          copy_box(to, l.in_proj, column, row, barrier());
          copy_box(to + Size::stage_bytes / 2, l.in_proj, column, Size::d + row, barrier());
        }
        next();
      }
      for (int i = 0; i < rows; i += Size::conv_rows)
        fill_rows(i, Size::conv_rows, l.conv_state, Size::conv_bytes);
      if (layer + 1 < s.layers) ask_for(s.layer[layer + 1]);
      constexpr int kStateRows = Size::template state_rows<S>;
      for (int i = 0; i < rows; i += kStateRows)
        fill_rows(i, kStateRows, l.scan_state, Size::channels * kLayerStates * int{sizeof(S)});
#pragma unroll 1
      for (int i = 0; i < Size::out_stages; i++) {
        char* const to = place();
        if (lane == 0) {
          arrive_expecting(barrier(), Size::stage_bytes);
#pragma unroll
          for (int box = 0; box < Size::boxes; box++)
            copy_box(to + box * (Size::stage_bytes / Size::boxes), l.out_proj,
                     (i * Size::boxes + box) * Size::columns, block * Size::out_rows, barrier());
        }
        next();
      }
    }
    for (int i = 0; i < ring.stages; i++) place(), next();  // all is done with
  }
  // A layer's small tensors into the L2, ahead of it.
  __device__ __forceinline__ void ask_for(const ClusterLayer<T>& l) const {
    constexpr int kSector = 32, channels = Size::channels, k = Size::k;
    const int channel = block * channels;
    const auto ask = [](const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); };
    const auto span = [&](const void* p, int bytes) {
      for (int at = lane * kSector; p && at < bytes; at += 32 * kSector)
        ask(static_cast<const char*>(p) + at);
    };
    if (lane < 2) asm volatile("prefetch.tensormap [%0];" ::"l"(lane ? &l.out_proj : &l.in_proj));
    span(l.norm + block * Size::out_rows, Size::out_rows * 4);
    span(l.conv_weight + channel * kLayerTaps, channels * kLayerTaps * 4);
    span(l.conv_bias ? l.conv_bias + channel : nullptr, channels * 4);
    constexpr int kSectors = channels / 16;  // of a row of x_proj
    for (int i = lane; i < k * kSectors; i += 32)
      ask(l.x_proj + i / kSectors * Size::d + channel + i % kSectors * 16);
    span(l.dt_weight + channel * Size::r, channels * Size::r * 2);
    span(l.A + channel * kLayerStates, channels * kLayerStates * 4);
    span(l.dt_bias + channel, channels * 4);
    span(l.D + channel, channels * 4);
  }
};

}  // namespace ss::cuda
