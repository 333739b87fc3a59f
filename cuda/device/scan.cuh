// A block's way through a sequence: tiles of kSteps tokens by kWidth channels, in three stages.
//   enter  an edge thread makes dt and dt u of 4 tokens by kItem channels, in shared memory
//   scan   kLanes scanning threads a channel, kStates states each in registers: h, and shares of y
//   leave  the edge thread sums the shares, adds D u, gates with silu(z), writes y
// Warps are specialised, so that the edge's arithmetic runs beside the scan's exponentials and a
// tile costs one barrier: while tile i is scanned, tile i - 1 leaves and tile i + 1 enters.
#pragma once
#include "scan_edge.cuh"
#include "scan_lane.cuh"

namespace ss::cuda {

// One block for each piece of a sequence and kWidth channels of it.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kBlocks)
    scan_sequences(const __grid_constant__ Scan<typename P::T> s) {
  extern __shared__ float4 memory[];
  s.sequences.check();
  const int64_t number = blockIdx.x / s.blocks;
  const auto piece = s.sequences.piece(number, s.cut);
  if (piece.begin >= piece.end) return;
  const int64_t slot = s.sequences.slot(piece.sequence);
  float* state = slot < 0 ? nullptr : s.state + slot * s.state_stride;

  const Place<P> place(s, blockIdx.x % s.blocks);
  const int tokens = static_cast<int>(piece.end - piece.begin);
  const int tiles = (tokens + P::kSteps - 1) / P::kSteps;
  const auto tile = [&](int i) { return P::tile(memory, i % 2); };
  if (threadIdx.x < P::kScanners) {
    Lane<P> lane(s, place, s.carry ? s.carry + number * s.d * s.n : state);
    meet<P>();
    for (int i = 0; i < tiles; i++) {
      lane.scan(tile(i), smaller(tokens - i * P::kSteps, P::kSteps));
      meet<P>();
    }
    if (state && piece.end == piece.stop) lane.store(s, place, state);
  } else {
    Edge<P> edge(s, place, piece.begin, tokens);
    edge.enter(tile(0), 0);
    meet<P>();
    for (int i = 0; i < tiles; i++) {
      if (i > 0) edge.leave(tile(i - 1), i - 1);
      edge.follow(i);
      if (i + 1 < tiles) edge.enter(tile(i + 1), i + 1);
      meet<P>();
    }
    edge.leave(tile(tiles - 1), tiles - 1);
  }
}

}  // namespace ss::cuda
