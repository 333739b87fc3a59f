// A scanning thread with kOwn channels: their steps share B and C, which come from shared memory
// through the same queue as the special-function unit's answers, and hold those up.
#pragma once
#include "scan_ring_plan.cuh"

namespace ss::cuda {

template <class P>
class PairLane {
  static constexpr int S = P::kStates, Q = P::kQuad, K = P::kOwn;
  static constexpr int kApart = P::kWidth / K;  // rows between a thread's channels
  static constexpr int kTurn = smaller(8, P::kSteps);
  using Fours = Pack<4>;  // of four tokens
  struct Factors {
    float B[S], C[S];
  };

  int part, slot;
  float A[K][S], h[K][S];

 public:
  __device__ PairLane(const Scan<typename P::T>& s, const Place<P>& place, const float* from) {
    constexpr int slots = 32 / P::kLanes;
    const int lane = threadIdx.x % 32, high = lane / 4;
    part = lane / 2 % 2 + high / (slots / 2) * 2;  // as Lane: 16 threads are served at once
    slot = lane % 2 + high % (slots / 2) * 2 + threadIdx.x / 32 * slots;
#pragma unroll
    for (int k = 0; k < K; k++) {
      const int64_t c = channel(place, k);
#pragma unroll
      for (int i = 0; i < S; i++) {
        const bool there = c < place.first + place.width && n(i) < s.n;
        A[k][i] = there ? s.A[c * s.A_stride + n(i)] * kLog2e : 0.0f;
        h[k][i] = there && from ? from[c * s.n + n(i)] : 0.0f;
      }
    }
  }

  __device__ void store(const Scan<typename P::T>& s, const Place<P>& place, float* to) const {
#pragma unroll
    for (int k = 0; k < K; k++) {
      const int64_t c = channel(place, k);
#pragma unroll
      for (int i = 0; i < S; i++)
        if (c < place.first + place.width && n(i) < s.n) to[c * s.n + n(i)] = h[k][i];
    }
  }
  // As Lane's.
  __device__ void scan(const Tile& tile, int steps) {
    const float *dt_row = tile.dt + slot * P::kRow, *dtu_row = tile.dtu + slot * P::kRow;
    float* share_row = tile.shares + part * P::kPlane + slot * P::kRow;
    const float* row = tile.coefficients + P::coefficient(part * Q);
    Fours dt[K], dtu[K];
    float e[K][S];
    Factors now = load(row);
#pragma unroll
    for (int k = 0; k < K; k++) {
      dt[k] = Fours::load(dt_row + k * kApart * P::kRow);
      dtu[k] = Fours::load(dtu_row + k * kApart * P::kRow);
#pragma unroll
      for (int i = 0; i < S; i++) e[k][i] = exp2_approx(dt[k].item[0] * A[k][i]);
    }
#pragma unroll 1
    for (int t = 0; t < steps; t += kTurn) {
#pragma unroll
      for (int turn = 0; turn < kTurn; turn += 4) {
        const int at = t + turn;
        Fours next_dt[K], next_dtu[K], y[K];
#pragma unroll
        for (int k = 0; k < K; k++) {
          next_dt[k] = Fours::load(dt_row + k * kApart * P::kRow + at + 4);
          next_dtu[k] = Fours::load(dtu_row + k * kApart * P::kRow + at + 4);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const Factors next = load(row + (at + j + 1) * P::kFactors);
#pragma unroll
          for (int k = 0; k < K; k++) {
            const float after = j < 3 ? dt[k].item[(j + 1) % 4] : next_dt[k].item[0];
            y[k].item[j] = 0.0f;
#pragma unroll
            for (int i = 0; i < S; i++) {
              h[k][i] = fmaf(e[k][i], h[k][i], dtu[k].item[j] * now.B[i]);
              e[k][i] = exp2_approx(after * A[k][i]);
              y[k].item[j] = fmaf(h[k][i], now.C[i], y[k].item[j]);
            }
          }
          now = next;
        }
#pragma unroll
        for (int k = 0; k < K; k++) {
          y[k].store(share_row + k * kApart * P::kRow + at);
          dt[k] = next_dt[k], dtu[k] = next_dtu[k];
        }
      }
    }
  }

 private:
  __device__ int n(int i) const { return (i / Q * P::kLanes + part) * Q + i % Q; }
  __device__ int64_t channel(const Place<P>& place, int k) const {
    return place.first + P::channel(slot + k * kApart);
  }

  __device__ static Factors load(const float* row) {
    static_assert(Q == 4);
    Factors out;
#pragma unroll
    for (int i = 0; i < S; i += 4) {
      const auto Bs = Pack<4>::load(row + i * 2 * P::kLanes);
      const auto Cs = Pack<4>::load(row + i * 2 * P::kLanes + P::kToC);
#pragma unroll
      for (int q = 0; q < 4; q++) out.B[i + q] = Bs.item[q], out.C[i + q] = Cs.item[q];
    }
    return out;
  }
};

}  // namespace ss::cuda
