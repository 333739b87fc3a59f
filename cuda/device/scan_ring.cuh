// scan_sequences with a longer way between memory and the scan: a ring of tiles in shared memory.
//   ask    an edge thread starts copies of u, delta, z, B and C, raw, that it alone will read
//   enter  a crew of edge threads makes dt, dt u and f32 coefficients of a tile; then `full` opens
//   scan   scanning warps, each at its own pace, put shares of y beside it; then `scanned` opens
//   leave  the same crew sums the shares, adds D u, gates with silu(z), writes y
// No barrier stops the whole block once it has begun, and several tiles are on the way: a lone block
// needs that, and it spares full multiprocessors some waiting too.
#pragma once
#include "scan_pair_lane.cuh"
#include "scan_ring_edge.cuh"
#include "scan_ring_lane.cuh"

namespace ss::cuda {

constexpr int kTurnstiles = 128;  // bytes for them, beside a plan's kBytes

// Whole sequences, or pieces from their carry.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kBlocks)
    scan_ring(const __grid_constant__ Scan<typename P::T> s) {
  extern __shared__ float4 shared_memory[];
  __shared__ Turnstile full[P::kStages], scanned[P::kStages];
  static_assert(sizeof(full) + sizeof(scanned) <= kTurnstiles);
  float* memory = reinterpret_cast<float*>(shared_memory);
  s.sequences.check();
  const int64_t number = blockIdx.x / s.blocks;
  const auto piece = s.sequences.piece(number, s.cut);
  if (piece.begin >= piece.end) return;
  const int64_t slot = s.sequences.slot(piece.sequence);
  float* state = slot < 0 ? nullptr : s.state + slot * s.state_stride;

  const Place<P> place(s, blockIdx.x % s.blocks);
  const int tokens = static_cast<int>(piece.end - piece.begin);
  const int tiles = (tokens + P::kSteps - 1) / P::kSteps;
  if (threadIdx.x < P::kStages) {
    full[threadIdx.x].make(P::kCrew);
    scanned[threadIdx.x].make(P::kScanners);
  }
  __syncthreads();
  if (threadIdx.x < P::kScanners) {
    using Lane = std::conditional_t<(P::kUnit > 0), RingLane<P>,
                                    std::conditional_t<(P::kOwn > 1), PairLane<P>, ss::cuda::Lane<P>>>;
    Lane lane(s, place, s.carry ? s.carry + number * s.d * s.n : state);
    if constexpr (P::kUnit > 0) {
      lane.walk(memory, full, scanned, tiles);
    } else {
      Ring<P::kStages> stage;
      for (int i = 0; i < tiles; i++) {
        full[stage.at].pass(stage.round);
        const int steps = smaller(tokens - i * P::kSteps, P::kSteps);
        lane.scan(P::tile(memory, stage.at), steps);
        scanned[stage.at].arrive();
        stage.next();
      }
    }
    if (state && piece.end == piece.stop) lane.store(s, place, state);
  } else {
    RingEdge<P> edge(s, place, piece.begin, tokens, reinterpret_cast<char*>(memory + P::kFloats));
    edge.ask_first(tiles);
    edge.walk(memory, full, scanned, tiles);
  }
}

}  // namespace ss::cuda
