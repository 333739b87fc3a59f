// How a ring plan (scan_ring.cuh) lays tiles out over threads and shared memory.
#pragma once
#include "turnstile.cuh"
#include "scan_plan.cuh"

namespace ss::cuda {

// As Plan, with Warps that scan. An edge thread has Item channels by 4 tokens of a tile of Steps
// tokens; Crews of edge threads take tiles in turn. Stages: tiles that are ready to be scanned, are
// being scanned or wait to leave. Early: tiles that a crew has asked for and that have not entered.
// Unit: tokens whose factors a lone warp asks for ahead (RingLane); 0: Lane scans or, where a
// thread has Own channels, PairLane.
template <class T_, int States, int Lanes, int Warps, int Item, int Steps, int Stages, int Crews,
          int Early, int Blocks, int Unit, int Own = 1>
struct RingPlan {
  using T = T_;
  static constexpr bool kFast = true;
  static constexpr int kStates = States, kLanes = Lanes, kBlocks = Blocks;
  static constexpr int kItem = Item, kSteps = Steps;
  static constexpr int kStages = Stages, kCrews = Crews, kEarly = Early;
  static constexpr int kUnit = Unit;
  static constexpr int kN = States * Lanes, kScanners = 32 * Warps;
  static constexpr int kOwn = Own, kWidth = kScanners / Lanes * Own;
  static constexpr int kColumns = kWidth / Item, kCrew = kColumns * Steps / 4;
  static constexpr int kThreads = kScanners + Crews * kCrew;
  static_assert(kCrew % 32 == 0 && Stages % Crews == 0);

  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T)), kOfRow = 2 * kN / kPiece;
  static constexpr int kPieces = (Steps * kOfRow + kCrew - 1) / kCrew;
  static constexpr int kQuad = smaller(4, States);
  static constexpr int kAheadSteps = States <= 2 ? 4 : States == 4 ? 2 : 1;

  // Shared memory, in floats: stages, then their shares of y.
  static constexpr int kRow = Steps + 4, kPlane = kWidth * kRow + 16, kFactors = 2 * kN + 4;
  static constexpr int kDtu = kWidth * kRow, kCoefficients = 2 * kDtu;
  static constexpr int kStage = kCoefficients + (Steps + kAheadSteps) * kFactors;
  static constexpr int kShares = Lanes * kPlane;
  static constexpr int kFloats = Stages * (kStage + kShares);
  // In bytes: what a crew has asked for: delta, u, z of its threads, then pieces of B and C.
  static constexpr int kItemBytes = Item * static_cast<int>(sizeof(T));
  static constexpr int kItems = 3 * 4 * kCrew * kItemBytes, kSlot = kItems + kPieces * kCrew * 16;
  static constexpr int kSlots = Early + Stages / Crews;
  static constexpr int kBytes = kFloats * 4 + Crews * kSlots * kSlot;

  __device__ static Tile tile(float* memory, int stage) {
    float* dt = memory + stage * kStage;
    return {dt, dt + kDtu, memory + Stages * kStage + stage * kShares, dt + kCoefficients};
  }
  __device__ static int row(int column, int k) { return k * kColumns + column; }
  __device__ static int channel(int row) { return row % kColumns * Item + row / kColumns; }

  static constexpr int kToC = kQuad == 4 ? 4 * Lanes : kQuad;
  __device__ static int coefficient(int n) {
    constexpr int quads = kQuad == 4 ? Lanes : 1;  // of B before as many of C
    const int quad = n / kQuad;
    return (quad / quads * 2 * quads + quad % quads) * kQuad + n % kQuad;
  }
};

// Counts 0 to Size - 1 around, and the rounds.
template <int Size>
struct Ring {
  int at = 0;
  unsigned round = 0;
  __device__ void next(int by = 1) {
    at += by;
    if (at >= Size) at -= Size, round++;
  }
};

}  // namespace ss::cuda
