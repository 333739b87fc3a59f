// What the scan's kernels are given, and how a plan lays a tile out over threads and shared memory.
#pragma once
#include "activation.cuh"
#include "pack.cuh"
#include "sequences.cuh"
#include "words.cuh"

namespace ss::cuda {

template <class T>
struct Scan {
  const T *u, *delta, *z;  // [t, d]; z may be null
  T* y;                    // [t, d]
  int64_t u_stride, delta_stride, z_stride, y_stride;
  const float *A, *D, *delta_bias;  // [d, n], [d], [d]; the last two may be null
  int64_t A_stride;
  const void *B, *C;  // T [t, g, n], or constant f32 [d, n]
  int64_t B_stride, C_stride;
  bool B_constant, C_constant;
  float* state;  // [p, d, n]
  int64_t state_stride;
  Sequences sequences;
  Cut cut;         // sequences are scanned in pieces, side by side; kUncut: each as one
  float* carry;    // [pieces, d, n]: the state that a piece starts from; null where sequences are uncut
  float* time;     // [pieces, d]: the sum of dt over a piece, or its end
  float* factors;  // B as turn_factors leaves it
  int64_t d, n, group_channels;
  unsigned group_blocks, blocks;  // blocks of channels: of a group, of all; none spans two groups
  bool delta_softplus;
  bool wide;  // scan_tokens: whether fours are aligned
};

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// A tile in shared memory.
struct Tile {
  float *dt, *dtu, *shares, *coefficients;
};

// A channel's states on Lanes threads of States each. Fast: all accesses aligned, B and C given per
// token; else anything. Blocks: of a multiprocessor at once, which bounds the registers.
template <class T_, int States, int Lanes, bool Fast, int Blocks>
struct Plan {
  using T = T_;
  static constexpr int kStates = States, kLanes = Lanes, kBlocks = Blocks;
  static constexpr bool kFast = Fast;
  static constexpr int kSteps = 32;                 // tokens of a tile
  static constexpr int kN = States * Lanes;         // states of a channel, padded
  static constexpr int kScanners = 128;             // threads that scan
  static constexpr int kWidth = kScanners / Lanes;  // channels of a block
  static constexpr int kColumns = smaller(16, kWidth), kItem = kWidth / kColumns;
  static constexpr int kEdges = kColumns * kSteps / 4;  // threads at the edge
  static constexpr int kThreads = kScanners + kEdges;

  // B and C of a tile, in pieces of 16 bytes.
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  static constexpr int kPieces = (kSteps * 2 * kN / kPiece + kEdges - 1) / kEdges;  // of a thread
  static constexpr int kQuad = smaller(4, States);
  // Tokens whose coefficients and exponentials are under way while as many are scanned: what
  // registers allow, and enough to hide what a lone warp waits for.
  static constexpr int kAheadSteps = States <= 2 ? 4 : States == 4 ? 2 : 1;

  // Shared memory, in floats. Rows hold a channel's tokens and one access more, which keeps banks
  // apart and lets the scan load ahead beyond the last.
  static constexpr int kRow = kSteps + 4;
  static constexpr int kPlane = kWidth * kRow + 16;  // shares of y, of one lane of each channel
  static constexpr int kFactors = 2 * kN + 4;  // a token's B and C
  static constexpr int kCoefficients = (kSteps + kAheadSteps) * kFactors;
  static constexpr int kTile = 2 * kWidth * kRow + Lanes * kPlane + kCoefficients;
  static constexpr int kBytes = 2 * kTile * static_cast<int>(sizeof(float));

  // One of the two tiles that are in shared memory.
  __device__ static Tile tile(float4* memory, int parity) {
    float* dt = reinterpret_cast<float*>(memory) + parity * kTile;
    float *dtu = dt + kWidth * kRow, *shares = dtu + kWidth * kRow;
    return {dt, dtu, shares, shares + Lanes * kPlane};
  }

  // Row of item k of a column, so that neighbouring columns lie in neighbouring rows; and back.
  __device__ static int row(int column, int k) { return k * kColumns + column; }
  __device__ static int channel(int row) { return row % kColumns * kItem + row / kColumns; }

  // Where state n's B stands in a token's row of coefficients; its C stands kToC further.
  // What a thread needs lies together, up to 16 bytes.
  static constexpr int kToC = kQuad == 4 ? 4 * Lanes : kQuad;
  __device__ static int coefficient(int n) {
    constexpr int quads = kQuad == 4 ? Lanes : 1;  // of B before as many of C
    const int quad = n / kQuad;
    return (quad / quads * 2 * quads + quad % quads) * kQuad + n % kQuad;
  }
};

// The channels of a block.
template <class P>
struct Place {
  int64_t first, group;  // channel; group of B and C
  int width;             // channels that there are, from `first` on
  __device__ Place(const Scan<typename P::T>& s, unsigned block)
      : first(block / s.group_blocks * s.group_channels + block % s.group_blocks * P::kWidth),
        group(block / s.group_blocks) {
    const int64_t there = (group + 1) * s.group_channels - first;
    width = there < P::kWidth ? static_cast<int>(there) : P::kWidth;
  }
};

// All threads of the block meet here, from either branch. Not bar.sync, which is for whole warps:
// an edge's threads may have branched by their channels.
template <class P>
__device__ __forceinline__ void meet() {
  asm volatile("barrier.sync 1, %0;" ::"n"(P::kThreads) : "memory");
}

}  // namespace ss::cuda
