// A thread's share of a channel's states in the S4D recurrence, in registers. Lanes threads side by
// side take a channel, States states each; four tokens are one step of theirs, with A = 1 + E:
//   y(i) = sum over states of 2 Re(W A^(i+1) h) + sum over k <= i of K(i - k) u(k),  K(m) = sum of 2 Re(W A^m)
//   h = A^4 h + A^3 u(0) + A^2 u(1) + A u(2) + u(3)
// That is 20 multiplications a state, or 12 without y, where token by token it would be 32 and 24.
#pragma once
#include <stdint.h>

#include "complex.cuh"

namespace ss::cuda {

constexpr int kFour = 4;

struct S4dSystem {
  const float *E, *W;  // [d][n][2]
  int64_t E_stride, W_stride;
  int64_t d, n;
};

__device__ inline float2 pair_at(const float* row, int64_t j) { return {row[2 * j], row[2 * j + 1]}; }

template <int Lanes, int States>
struct S4dLane {
  static_assert(Lanes >= kFour);
  const S4dSystem& system;
  const int64_t c;
  float2 h[States];
  float2 change[States];         // A^4 - 1: what is added as a whole keeps the rate of slow decay
  float2 input[kFour - 1][States];  // A, A^2, A^3
  float2 output[kFour][States];  // 2 W A^(i+1), the imaginary part negated
  float taps[kFour];             // K(i - k) for the token i that this lane sums

  __device__ static int lane() { return threadIdx.x % Lanes; }
  __device__ bool there(int i) const { return c < system.d && lane() * States + i < system.n; }
  __device__ float2 E(int i) const {
    return there(i) ? pair_at(system.E + c * system.E_stride, lane() * States + i) : float2{};
  }
  __device__ float2 W(int i) const {
    return there(i) ? pair_at(system.W + c * system.W_stride, lane() * States + i) : float2{};
  }

  // skip is the channel's D. States that there are not stay out of y.
  __device__ S4dLane(const S4dSystem& s, int64_t channel, const float* state, float skip)
      : system(s), c(channel) {
    float kernel[kFour] = {};
#pragma unroll
    for (int i = 0; i < States; i++) {
      const float2 e = E(i), w = W(i);
      h[i] = there(i) && state ? pair_at(state + c * system.n * 2, lane() * States + i) : float2{};
      const Complex step{1 + static_cast<double>(e.x), e.y};
      Complex power{1, 0};
#pragma unroll
      for (int k = 0; k < kFour; k++) {
        const Complex out = times({2.0 * w.x, 2.0 * w.y}, power);
        kernel[k] += static_cast<float>(out.re);
        if (k > 0) {
          input[k - 1][i] = rounded(power);
          output[k - 1][i] = rounded({out.re, -out.im});
        }
        power = times(power, step);
      }
      const Complex last = times({2.0 * w.x, 2.0 * w.y}, power);
      output[kFour - 1][i] = rounded({last.re, -last.im});
      change[i] = rounded({power.re - 1, power.im});
    }
#pragma unroll
    for (int k = 0; k < kFour; k++) {
#pragma unroll
      for (int across = 1; across < Lanes; across *= 2)
        kernel[k] += __shfl_xor_sync(0xffffffffu, kernel[k], across);
    }
    kernel[0] += skip;
    const int token = lane() % kFour;
#pragma unroll
    for (int k = 0; k < kFour; k++) {
      taps[k] = 0;
#pragma unroll
      for (int m = 0; m < kFour; m++)
        if (token - k == m) taps[k] = kernel[m];
    }
  }

  __device__ void store(float* state) const {
    float* to = state + (c * system.n + lane() * States) * 2;
#pragma unroll
    for (int i = 0; i < States; i++)
      if (there(i)) to[2 * i] = h[i].x, to[2 * i + 1] = h[i].y;
  }

  // y of token lane() % 4.
  __device__ float outputs(const float (&u)[kFour]) const {
    float share[kFour];
#pragma unroll
    for (int k = 0; k < kFour; k++) {
      share[k] = 0;
#pragma unroll
      for (int i = 0; i < States; i++)
        share[k] = fmaf(output[k][i].y, h[i].y, fmaf(output[k][i].x, h[i].x, share[k]));
    }
    // Halves are exchanged, so that sums over four lanes cost three shuffles for four tokens.
    const bool high = lane() & 2, odd = lane() & 1;
    const float first = (high ? share[2] : share[0]) +
                        __shfl_xor_sync(0xffffffffu, high ? share[0] : share[2], 2);
    const float second = (high ? share[3] : share[1]) +
                         __shfl_xor_sync(0xffffffffu, high ? share[1] : share[3], 2);
    float sum = (odd ? second : first) + __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
#pragma unroll
    for (int across = kFour; across < Lanes; across *= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, across);
#pragma unroll
    for (int k = 0; k < kFour; k++) sum = fmaf(taps[k], u[k], sum);
    return sum;
  }
  __device__ void advance(const float (&u)[kFour]) {
#pragma unroll
    for (int i = 0; i < States; i++) {
      float2 x{u[3], 0};
#pragma unroll
      for (int k = 0; k < kFour - 1; k++) {
        x.x = fmaf(input[k][i].x, u[2 - k], x.x);
        x.y = fmaf(input[k][i].y, u[2 - k], x.y);
      }
      x.x = fmaf(-change[i].y, h[i].y, fmaf(change[i].x, h[i].x, x.x));
      x.y = fmaf(change[i].x, h[i].y, fmaf(change[i].y, h[i].x, x.y));
      h[i].x += x.x;
      h[i].y += x.y;
    }
  }

  // One token, where there are not four left; its y, on all lanes.
  __device__ float advance_one(float u, float skip) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < States; i++) {
      const float2 e = E(i), w = W(i);
      const float added = fmaf(-e.y, h[i].y, fmaf(e.x, h[i].x, u));
      h[i].y += fmaf(e.x, h[i].y, e.y * h[i].x);
      h[i].x += added;
      sum = fmaf(-2 * w.y, h[i].y, fmaf(2 * w.x, h[i].x, sum));
    }
#pragma unroll
    for (int across = 1; across < Lanes; across *= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, across);
    return fmaf(skip, u, sum);
  }
};

}  // namespace ss::cuda
