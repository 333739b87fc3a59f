// A scanning thread of a lone block: one warp has a scheduler to itself, and nobody hides what it
// waits for. Shared memory answers late, as its queue is the special-function unit's too: so dt u, B
// and C of the next kUnit tokens are asked for while these are scanned, and dt one unit earlier.
// Once a token's decay is used, the next unit's takes its place.
#pragma once
#include "scan_lane.cuh"
#include "scan_ring_plan.cuh"

namespace ss::cuda {

template <class P>
class RingLane : public Lane<P> {
  static constexpr int S = P::kStates, Q = P::kQuad, G = P::kUnit, kUnits = P::kSteps / G;
  static_assert(G % 4 == 0 && P::kSteps % G == 0 && P::kSteps / G >= 2);
  struct Factors {
    Pack<4> dtu[G / 4];
    float B[G][S], C[G][S];
  };
  struct Times {
    Pack<4> four[G / 4];
    __device__ float of(int t) const { return four[t / 4].item[t % 4]; }
  };

  using Lane<P>::part, Lane<P>::slot, Lane<P>::A, Lane<P>::h;
  float e[G][S];

 public:
  using Lane<P>::Lane;

  __device__ void walk(float* memory, Turnstile* full, Turnstile* scanned, int tiles) {
    Ring<P::kStages> stage;
    const int dt_at = slot * P::kRow, c_at = P::kCoefficients + P::coefficient(part * Q);
    const int y_at = P::kStages * P::kStage + part * P::kPlane + slot * P::kRow;
    full[0].pass(0);
    Factors now = factors(memory + dt_at + P::kDtu, memory + c_at, 0), next;
    Times dt = times(memory + dt_at, 0), later = times(memory + dt_at, 1);
#pragma unroll
    for (int t = 0; t < G; t++) decay(dt.of(t), t);
    dt = later;
    for (int i = 0; i < tiles; i++) {
      const float* tile = memory + stage.at * P::kStage;
      float* to = memory + y_at + stage.at * P::kShares;
      Turnstile& done = scanned[stage.at];
      stage.next();
      const float* after = memory + stage.at * P::kStage;
#pragma unroll
      for (int u = 0; u < kUnits; u++) {
        if (u + 2 == kUnits && i + 1 < tiles) full[stage.at].pass(stage.round);
        next = u + 1 < kUnits ? factors(tile + dt_at + P::kDtu, tile + c_at, u + 1)
                              : factors(after + dt_at + P::kDtu, after + c_at, 0);
        later = u + 2 < kUnits ? times(tile + dt_at, u + 2) : times(after + dt_at, u + 2 - kUnits);
        Pack<4> out;
#pragma unroll
        for (int t = 0; t < G; t++) {
          out.item[t % 4] = step(now, t);
          decay(dt.of(t), t);
          if (t % 4 == 3) out.store(to + u * G + t - 3);
        }
        now = next, dt = later;
      }
      done.arrive();
    }
  }

 private:
  __device__ static Times times(const float* row, int u) {
    Times out;
#pragma unroll
    for (int i = 0; i < G / 4; i++) out.four[i] = Pack<4>::load(row + u * G + i * 4);
    return out;
  }

  __device__ static Factors factors(const float* dtu, const float* row, int u) {
    Factors out;
#pragma unroll
    for (int i = 0; i < G / 4; i++) out.dtu[i] = Pack<4>::load(dtu + u * G + i * 4);
#pragma unroll
    for (int t = 0; t < G; t++) {
      const float* at = row + (u * G + t) * P::kFactors;
      if constexpr (Q < 4) {
        const auto some = Pack<2 * Q>::load(at);
#pragma unroll
        for (int k = 0; k < Q; k++) out.B[t][k] = some.item[k], out.C[t][k] = some.item[Q + k];
      } else {
#pragma unroll
        for (int i = 0; i < S; i += 4) {
          const auto Bs = Pack<4>::load(at + i * 2 * P::kLanes);
          const auto Cs = Pack<4>::load(at + i * 2 * P::kLanes + P::kToC);
#pragma unroll
          for (int k = 0; k < 4; k++) out.B[t][i + k] = Bs.item[k], out.C[t][i + k] = Cs.item[k];
        }
      }
    }
    return out;
  }

  __device__ void decay(float dt, int t) {
#pragma unroll
    for (int i = 0; i < S; i++)
      e[t][i] = exp2_approx(dt * A[i]);
  }

  __device__ float step(const Factors& f, int t) {
    float y = 0.0f;
#pragma unroll
    for (int i = 0; i < S; i++) {
      h[i] = fmaf(e[t][i], h[i], f.dtu[t / 4].item[t % 4] * f.B[t][i]);
      y = fmaf(h[i], f.C[t][i], y);
    }
    return y;
  }
};

}  // namespace ss::cuda
