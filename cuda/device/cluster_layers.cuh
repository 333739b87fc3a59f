// Layers of a decode step of some sequences, of narrow models, in one kernel: clusters of 16 blocks that
// never talk to each other. A cluster has some of the sequences and does all layers for them:
//   norm      a block has 1/16 of the residual's columns; sums of squares, then normed rows to all blocks
//   in_proj   x and z of the block's channels; their convolution, u
//   x_proj    u's share of dbc goes to the block that adds up that sequence's; dbc to all blocks
//   dt_proj   and one step of the states, for the block's channels; gated y to all blocks
//   out_proj  the block's columns of the residual
// so a layer is five exchanges through each other's shared memory. Weights and states come through a
// ring in shared memory, which runs on through the exchanges. Each cluster reads all weights: all but
// one of them from the L2.
#pragma once
#include "cluster_layer_phases.cuh"

namespace ss::cuda {

template <class T, class S, int Model, int Tiles>
__global__ void __launch_bounds__(ClusterSizes<Model, Tiles>::threads + 32, 1)
    cluster_layers(const __grid_constant__ ClusterLayers<T> s) {
#if __CUDA_ARCH__ >= 900
  using Size = ClusterSizes<Model, Tiles>;
  extern __shared__ __align__(1024) char memory[];
  auto& shared =
      *reinterpret_cast<ClusterMemory<T, Size>*>(memory + s.stages * Size::stage_bytes);
  const int clusters = static_cast<int>(gridDim.x) / kClusterBlocks;
  const int cluster = static_cast<int>(blockIdx.x) / kClusterBlocks;
  const auto dealt = [&](int i) {
    return static_cast<int>(static_cast<int64_t>(s.count) * i / clusters);
  };
  const int first = dealt(cluster), rows = dealt(cluster + 1) - first;
  const int thread = threadIdx.x;
  ClusterRing<Size> ring{memory, shared.full, s.stages};
  ClusterStep<T, S, Model, Tiles> step{s, shared, ring, first, rows};
  if (thread == 0) {
    for (int i = 0; i < kMeetings; i++) init_barrier(&shared.met[i], 1);
    for (int i = 0; i < s.stages; i++) init_barrier(&shared.full[i], 1);
    publish_barriers();
    for (int i = 0; i < kMeetings; i++) step.expect(static_cast<Meeting>(i));
  }
  wait_for_previous();
  if (blockIdx.x == 0)
    for (int i = thread; i <= s.count; i += Size::threads) {
      if (s.offsets[i] != i) s.bad_offset->report(i, s.offsets[i], i);
      if (i < s.count && s.slots[i] >= s.pool) s.bad_slot->report(i, s.slots[i], s.pool);
    }
  if (thread < rows) {
    const int slot = s.slots[first + thread];
    shared.slot[thread] = slot < s.pool ? slot : -1;
  }
  // All blocks have begun: from here on their shared memory may be written.
  cluster_arrive();
  cluster_wait();
  if (thread >= Size::threads) {
    ClusterFiller<T, S, Size>{s, ring, shared.slot, rows}.fill();
  } else {
    step.begin();
#pragma unroll 1
    for (int layer = 0; layer < s.layers; layer++) {
      const ClusterLayer<T>& l = s.layer[layer];
      step.square(l);
      step.meet(kSquares, layer);
      step.normalize(l);
      step.load_conv(l);
      step.meet(kNormed, layer);
      step.project_in();
      step.load_x_proj(l);
      sync_cluster_step<Size>();
      step.convolve(l);
      sync_cluster_step<Size>();
      step.share();
      sync_cluster_step<Size>();
      step.send_shares();
      step.load_dt(l);
      step.meet(kShares, layer);
      step.add_shares(l);
      if (layer + 1 == s.layers) let_next_start();
      step.meet(kDbc, layer);
      step.project_dt();
      step.advance(l);
      step.meet(kGated, layer);
      step.project_out(l);
    }
  }
  // What this block has sent has come before it is gone.
  cluster_arrive();
  cluster_wait();
#endif
}

}  // namespace ss::cuda
