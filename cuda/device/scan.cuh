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
  const auto piece = s.sequences.piece(number, s.shift);
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
      lane.template scan<true>(tile(i), smaller(tokens - i * P::kSteps, P::kSteps));
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

// What each piece but a sequence's last adds to the state, as if it started from zero, and the sum
// of its dt: exp(A sum dt) is the decay over the whole piece.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kBlocks)
    scan_pieces(const __grid_constant__ Scan<typename P::T> s) {
  extern __shared__ float4 memory[];
  const int64_t number = blockIdx.x / s.blocks;
  const auto piece = s.sequences.piece(number, s.shift);
  if (piece.begin >= piece.end || piece.end == piece.stop) return;

  const Place<P> place(s, blockIdx.x % s.blocks);
  const int tokens = static_cast<int>(piece.end - piece.begin), tiles = tokens / P::kSteps;
  const auto tile = [&](int i) { return P::tile(memory, i % 2); };
  if (threadIdx.x < P::kScanners) {
    Lane<P> lane(s, place, nullptr);
    meet<P>();
    for (int i = 0; i < tiles; i++) {
      lane.template scan<false>(tile(i), P::kSteps);
      meet<P>();
    }
    lane.store(s, place, s.carry + number * s.d * s.n);
    lane.store_time(place, s.time + number * s.d);
  } else {
    Edge<P> edge(s, place, piece.begin, tokens);
    edge.enter(tile(0), 0);
    meet<P>();
    for (int i = 0; i < tiles; i++) {
      if (i + 1 < tiles) edge.enter(tile(i + 1), i + 1);
      meet<P>();
    }
  }
}

// From what the pieces add to what each starts from, one after the other; a thread for each state.
template <class T>
__global__ void join_pieces(const __grid_constant__ Scan<T> s) {
  constexpr int kBatch = 8;  // loads under way
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, row = s.d * s.n;
  const auto sequence = s.sequences.whole(blockIdx.y);
  const int64_t count = (sequence.stop - sequence.start + (int64_t{1} << s.shift) - 1) >> s.shift;
  if (at >= row || count <= 0) return;
  const int64_t first = s.sequences.first_piece(blockIdx.y, s.shift), c = at / s.n;
  const float A = s.A[c * s.A_stride + at % s.n] * kLog2e;
  const int64_t slot = s.sequences.slot(blockIdx.y);
  float h = slot < 0 ? 0.0f : s.state[slot * s.state_stride + at];
  for (int64_t k = 0; k < count; k += kBatch) {
    float added[kBatch], time[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      const bool there = k + j + 1 < count;  // the last piece adds to none
      added[j] = there ? s.carry[(first + k + j) * row + at] : 0.0f;
      time[j] = there ? s.time[(first + k + j) * s.d + c] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      if (k + j >= count) break;
      s.carry[(first + k + j) * row + at] = h;
      h = fmaf(exp2_approx(A * time[j]), h, added[j]);
    }
  }
}

}  // namespace ss::cuda
