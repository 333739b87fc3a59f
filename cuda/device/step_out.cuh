// y = x W^T for 17 to 256 rows of x, halves: the out_proj of a step of many sequences. A block has 64 rows
// of x, Columns rows of W, so that all multiprocessors have some, and half of k; the two blocks of a cluster add
// up what they have, each 32 rows, the first half of k before the second. x is the 64-row side of wgmma, W the other.
// Two warps ask for tiles, four multiply. Bound by W's bytes, and by what a block's shared memory takes in, W's and x's
// together: with more than 64 rows of a wide model cuBLASLt's tiles take in less.
//
// W is read before the kernel before has ended, which is no exception to dependent.cuh if that kernel
// lets this one start after its own wait, and does not write W. As far as the ring holds it, which is not much: what
// W asks for stands in front of x.
#pragma once
#include "cluster.cuh"
#include "dependent.cuh"
#include "pack.cuh"
#include "tile_ring.cuh"
#include "warpgroup.cuh"

namespace ss::cuda {

struct OutProj {
  CUtensorMap x, w;
  void* y;
  int64_t y_stride;
  int rows;
  int stages;  // of a block along k
  bool ahead;  // W may be read early
};

template <int Columns_>
struct OutProjPlan {
  static constexpr int kRows = 64, kColumns = Columns_, kEights = kColumns / 8;
  static constexpr int kReaders = 128, kThreads = kReaders + 64;
  static constexpr int kBoxes = 4, kDepth = kBoxes * 64;  // of a stage: columns of k
  static constexpr int kBoxX = kRows * 128, kBoxW = kColumns * 128;
  static constexpr int kStagesW = (kColumns > 32 ? 100 : 64) * 1024 / (kBoxes * kBoxW);
  using X = TileRing<3, kBoxes * kBoxX>;
  using W = TileRing<kStagesW, kBoxes * kBoxW>;
  // What the other block has of two warps' rows, as its lanes hold it.
  static constexpr int kShare = 2 * kEights * 32 * static_cast<int>(sizeof(float4));
  static constexpr int kBytes = 1024 + X::kStages * X::kBytes + W::kStages * W::kBytes + kShare;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Into another block's shared memory; its barrier is told.
__device__ __forceinline__ void send_quad(uint32_t to, const float* v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
      : "memory");
}

// Two warps, one for each matrix; the lanes but one idle.
template <class P>
__device__ __forceinline__ void ask_for_x(const OutProj& p, typename P::X x, int first, int row) {
  prefetch_map(p.x);
  wait_for_previous();
  const uint64_t policy = read_again();
#pragma unroll 1
  for (int i = 0; i < p.stages; i++) {
    char* const to = x.place(P::X::kBytes);
#pragma unroll
    for (int j = 0; j < P::kBoxes; j++)
      x.ask(to + j * P::kBoxX, p.x, first + i * P::kDepth + j * 64, row, policy);
    x.next();
  }
}
template <class P>
__device__ __forceinline__ void ask_for_w(const OutProj& p, typename P::W w, int first, int column) {
  prefetch_map(p.w);
  if (!p.ahead) wait_for_previous();
  const uint64_t policy = read_once();
#pragma unroll 1
  for (int i = 0; i < p.stages; i++) {
    char* const to = w.place(P::W::kBytes);
#pragma unroll
    for (int j = 0; j < P::kBoxes; j++)
      w.ask(to + j * P::kBoxW, p.w, first + i * P::kDepth + j * 64, column, policy);
    w.next();
  }
  wait_for_previous();
}

// By the warp that adds up 16 rows, of which a lane has two.
template <class T, class P>
__device__ __forceinline__ void write_rows(const OutProj& p, const float (&c)[P::kColumns / 2], int row, int column) {
  const int q = threadIdx.x % 4;
  T* const y = static_cast<T*>(p.y) + column;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int to = row + 8 * half;
    const auto pair = [&](int j) {
      Raw<T, 2> both;
      from_float(both.item[0], c[4 * j + 2 * half]);
      from_float(both.item[1], c[4 * j + 2 * half + 1]);
      return *reinterpret_cast<const uint32_t*>(&both);
    };
    // Neighbouring lanes exchange pairs, so that each has 8 bytes of a row.
#pragma unroll
    for (int j = 0; j + 1 < P::kEights; j += 2) {
      const uint32_t now = pair(j), next = pair(j + 1);
      const uint32_t got = __shfl_xor_sync(0xffffffffu, q % 2 ? now : next, 1);
      if (to < p.rows)
        *reinterpret_cast<uint2*>(y + to * p.y_stride + 8 * (j + q % 2) + q / 2 * 4) =
            q % 2 ? uint2{got, next} : uint2{now, got};
    }
    if (P::kEights % 2 && to < p.rows)
      *reinterpret_cast<uint32_t*>(y + to * p.y_stride + 8 * (P::kEights - 1) + 2 * q) = pair(P::kEights - 1);
  }
}

#endif

template <class T, int Columns>
__global__ void __launch_bounds__(OutProjPlan<Columns>::kThreads) step_out_proj(const __grid_constant__ OutProj p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using P = OutProjPlan<Columns>;
  extern __shared__ char memory[];
  __shared__ uint64_t x_full[P::X::kStages], x_free[P::X::kStages], w_full[P::W::kStages], w_free[P::W::kStages], met;
  char* const tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  typename P::X x{tiles, x_full, x_free};
  typename P::W w{tiles + P::X::kStages * P::X::kBytes, w_full, w_free};
  auto* const share = reinterpret_cast<float4(*)[P::kEights][32]>(w.memory + P::W::kStages * P::W::kBytes);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int part = static_cast<int>(cluster_rank()), first = part * p.stages * P::kDepth;
  const int column = static_cast<int>(blockIdx.x) / 2 * Columns, row = static_cast<int>(blockIdx.y) * P::kRows;
  if (thread == 0) {
    x.init(P::kReaders / 32);
    w.init(P::kReaders / 32);
    init_barrier(&met, 1);
    publish_barriers();
    arrive_expecting(&met, P::kShare);
  }
  __syncthreads();
  cluster_arrive();

  if (warp >= P::kReaders / 32) {
    if (lane == 0) {
      if (warp == P::kReaders / 32)
        ask_for_w<P>(p, w, first, column);
      else
        ask_for_x<P>(p, x, first, row);
    }
    __syncwarp();
    wait_for_previous();
    let_next_start();
    cluster_wait();
    return;
  }

  wait_for_previous();
  float c[Columns / 2] = {};
  int x_before = 0, w_before = 0;
#pragma unroll 1
  for (int i = 0; i < p.stages; i++) {
    const uint32_t b = shared_address(w.wait()), a = shared_address(x.wait());
    begin_products();
#pragma unroll
    for (int k = 0; k < P::kDepth / 16; k++)
      multiply(c, tile_at(a + k / 4 * P::kBoxX + k % 4 * 32), tile_at(b + k / 4 * P::kBoxW + k % 4 * 32), T{});
    end_products();
    // The tiles before these have been read once these are the only ones under way.
    wait_for_products<1>();
    if (i > 0) {
      x.release(x_before);
      w.release(w_before);
    }
    x_before = x.at.stage, w_before = w.at.stage;
    x.next();
    w.next();
  }
  wait_for_products();
  let_next_start();

  cluster_wait();  // the other block has begun
  const int owner = warp / 2;
  if (owner != part) {
    const uint32_t to = in_block(&share[warp % 2][0][lane], owner), barrier = in_block(&met, owner);
#pragma unroll
    for (int j = 0; j < P::kEights; j++) send_quad(to + j * 512, c + 4 * j, barrier);
    return;
  }
  wait_barrier(&met, 0);
#pragma unroll
  for (int j = 0; j < P::kEights; j++) {
    const float4 other = share[warp % 2][j][lane];  // two numbers' sum has no order
    c[4 * j] += other.x, c[4 * j + 1] += other.y, c[4 * j + 2] += other.z, c[4 * j + 3] += other.w;
  }
  write_rows<T, P>(p, c, row + warp * 16 + lane / 4, column);
#endif
}

}  // namespace ss::cuda
