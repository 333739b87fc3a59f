// A scanning thread: kStates states of one channel. A step of a state is five instructions (scale,
// exp2, dt u B, h, y) beside what it loads, and exp2 keeps its unit busy for longer than those take
// to issue: so the next steps' exponentials and coefficients are always under way.
#pragma once
#include "scan_plan.cuh"

namespace ss::cuda {

template <class P>
class Lane {
  static constexpr int S = P::kStates, Q = P::kQuad;
  using Fours = Pack<4>;  // of four tokens
  static constexpr int kTurn = smaller(16, P::kSteps);  // steps between branches
  struct Coefficients {
    float B[S], C[S];
  };

 protected:
  int part, slot;  // which of the kLanes, and of the kWidth channels
  float A[S], h[S];

 private:
  Coefficients constant;  // where B and C are

 public:
  __device__ Lane(const Scan<typename P::T>& s, const Place<P>& place, const float* from) {
    // Neighbouring threads share B and C, next neighbours share dt: then shared memory serves 16
    // threads at once.
    constexpr int slots = 32 / P::kLanes;  // of a warp
    const int lane = threadIdx.x % 32, high = lane / 4;
    part = lane / 2 % 2 + high / (slots / 2) * 2;
    slot = lane % 2 + high % (slots / 2) * 2 + threadIdx.x / 32 * slots;
    const int64_t c = place.first + P::channel(slot);
#pragma unroll
    for (int i = 0; i < S; i++) {
      const int64_t j = n(i);
      const bool there = c < place.first + place.width && j < s.n;
      A[i] = there ? s.A[c * s.A_stride + j] * kLog2e : 0.0f;
      h[i] = there && from ? from[c * s.n + j] : 0.0f;
      if constexpr (!P::kFast) {
        const auto load = [&](const void* x, int64_t stride, bool constant) {
          return there && constant ? static_cast<const float*>(x)[c * stride + j] : 0.0f;
        };
        constant.B[i] = load(s.B, s.B_stride, s.B_constant);
        constant.C[i] = load(s.C, s.C_stride, s.C_constant);
      }
    }
    B_constant = !P::kFast && s.B_constant, C_constant = !P::kFast && s.C_constant;
  }

  __device__ void store(const Scan<typename P::T>& s, const Place<P>& place, float* to) const {
    const int64_t c = place.first + P::channel(slot);
#pragma unroll
    for (int i = 0; i < S; i++)
      if (c < place.first + place.width && n(i) < s.n) to[c * s.n + n(i)] = h[i];
  }

  // Up to kTurn - 1 steps beyond the tokens are taken too: their dt is 0, which changes nothing.
  __device__ void scan(const Tile& tile, int steps) {
    constexpr int G = P::kAheadSteps;
    const float* dt_row = tile.dt + slot * P::kRow;
    const float* dtu_row = tile.dtu + slot * P::kRow;
    float* share_row = tile.shares + part * P::kPlane + slot * P::kRow;
    const float* row = tile.coefficients + P::coefficient(part * Q);

    Fours dt = Fours::load(dt_row), dtu = Fours::load(dtu_row), next_dt, later_dt;
    if constexpr (G > 1) next_dt = Fours::load(dt_row + 4);
    Coefficients now[G];
    float e[G][S];
#pragma unroll
    for (int g = 0; g < G; g++) {
      now[g] = load(row + g * P::kFactors);
      decay(e[g], dt.item[g]);
    }
    for (int t = 0; t < steps; t += kTurn) {
#pragma unroll
      for (int turn = 0; turn < kTurn; turn += 4) {
        const int at = t + turn;
        if constexpr (G > 1)
          later_dt = Fours::load(dt_row + at + 8);
        else
          next_dt = Fours::load(dt_row + at + 4);
        const Fours next_dtu = Fours::load(dtu_row + at + 4);
        Fours y;
#pragma unroll
        for (int j = 0; j < 4; j += G) {
          Coefficients next[G];
          float next_e[G][S];
#pragma unroll
          for (int g = 0; g < G; g++) {
            next[g] = load(row + (at + j + G + g) * P::kFactors);
            const int ahead = j + G + g;
            decay(next_e[g], ahead < 4 ? dt.item[ahead % 4] : next_dt.item[ahead % 4]);
          }
#pragma unroll
          for (int g = 0; g < G; g++) {
            y.item[j + g] = 0.0f;
#pragma unroll
            for (int i = 0; i < S; i++) {
              const float B = B_constant ? constant.B[i] : now[g].B[i];
              const float C = C_constant ? constant.C[i] : now[g].C[i];
              h[i] = fmaf(e[g][i], h[i], dtu.item[j + g] * B);
              y.item[j + g] = fmaf(h[i], C, y.item[j + g]);
            }
          }
#pragma unroll
          for (int g = 0; g < G; g++) {
            now[g] = next[g];
#pragma unroll
            for (int i = 0; i < S; i++) e[g][i] = next_e[g][i];
          }
        }
        y.store(share_row + at);
        dt = next_dt, dtu = next_dtu;
        if constexpr (G > 1) next_dt = later_dt;
      }
    }
  }

 private:
  bool B_constant, C_constant;

  __device__ int n(int i) const { return (i / Q * P::kLanes + part) * Q + i % Q; }

  __device__ void decay(float (&e)[S], float dt) const {
#pragma unroll
    for (int i = 0; i < S; i++) e[i] = exp2_approx(dt * A[i]);
  }

  __device__ static Coefficients load(const float* row) {
    Coefficients out;
    if constexpr (Q < 4) {
      const auto some = Pack<2 * Q>::load(row);
#pragma unroll
      for (int i = 0; i < Q; i++) out.B[i] = some.item[i], out.C[i] = some.item[Q + i];
    } else {
#pragma unroll
      for (int i = 0; i < S; i += 4) {
        const auto Bs = Pack<4>::load(row + i * 2 * P::kLanes);
        const auto Cs = Pack<4>::load(row + i * 2 * P::kLanes + P::kToC);
#pragma unroll
        for (int q = 0; q < 4; q++) out.B[i + q] = Bs.item[q], out.C[i + q] = Cs.item[q];
      }
    }
    return out;
  }
};

}  // namespace ss::cuda
