// The gradients of s4d_discretize, of which slope and curve (device/s4d_state.cuh) are the
// derivatives; * conjugates:
//   dC = (B input)* dW, dB = (C input)* dW, dA = (dt slope)* dE + (C B dt^2 curve)* dW,
//   d dt = Re((A slope)* dE + (C B slope)* dW), summed over a channel's states
// and by the parameters: dlog_dt = dt d dt, dlog_A_real = Re A Re dA, dA_imag = Im dA. In f64. A warp
// takes a channel, a lane every 32nd of its states.
#include "device/reduce.cuh"
#include "device/s4d_state.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

struct Given {
  const float *log_dt, *log_a_real, *a_imag, *B, *C, *dE, *dW;
  int64_t log_a_stride, a_imag_stride, B_stride, C_stride, dE_stride, dW_stride;
  int64_t d, n;
  bool bilinear;
  float *dlog_dt, *dlog_a_real, *da_imag;
  float2 *dB, *dC;
};

__device__ Complex pair(const float* rows, int64_t stride, int64_t c, int64_t j, Complex otherwise) {
  return rows ? Complex{rows[c * stride + 2 * j], rows[c * stride + 2 * j + 1]} : otherwise;
}
// a* b
__device__ Complex against(Complex a, Complex b) { return times({a.re, -a.im}, b); }

__global__ void discretize_back(const Given g) {
  const int64_t c = blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32;
  if (c >= g.d) return;
  const double dt = exp(static_cast<double>(g.log_dt[c]));
  double of_dt = 0;
  for (int64_t j = threadIdx.x % 32; j < g.n; j += 32) {
    const S4dState state = s4d_state(dt, g.log_a_real[c * g.log_a_stride + j],
                                     g.a_imag[c * g.a_imag_stride + j], g.bilinear);
    const Complex b = pair(g.B, g.B_stride, c, j, {1, 0}), out = pair(g.C, g.C_stride, c, j, {});
    const Complex e = pair(g.dE, g.dE_stride, c, j, {}), w = pair(g.dW, g.dW_stride, c, j, {});
    const Complex cb = times(out, b), curved = times(cb, state.curve);
    const Complex of_e = against({dt * state.slope.re, dt * state.slope.im}, e);
    const Complex of_w = against({dt * dt * curved.re, dt * dt * curved.im}, w);
    of_dt += against(times(state.A, state.slope), e).re + against(times(cb, state.slope), w).re;
    const int64_t i = c * g.n + j;
    g.dlog_a_real[i] = static_cast<float>(state.A.re * (of_e.re + of_w.re));
    g.da_imag[i] = static_cast<float>(of_e.im + of_w.im);
    g.dC[i] = rounded(against(times(b, state.input), w));
    if (g.B) g.dB[i] = rounded(against(times(out, state.input), w));
  }
  of_dt = warp_sum(of_dt);
  if (threadIdx.x % 32 == 0) g.dlog_dt[c] = static_cast<float>(dt * of_dt);
}

}  // namespace

void s4d_discretize_backward(Stream& s, In log_dt, In log_a_real, In a_imag, Opt B, In C, Opt dE, Opt dW,
                             bool bilinear, Out dlog_dt, Out dlog_a_real, Out da_imag, Out dB, Out dC) {
  Given g{};
  g.log_dt = log_dt.data<float>(), g.C = C.data<float>(), g.C_stride = C.stride();
  g.log_a_real = log_a_real.data<float>(), g.log_a_stride = log_a_real.stride();
  g.a_imag = a_imag.data<float>(), g.a_imag_stride = a_imag.stride();
  if (B) g.B = B.data<float>(), g.B_stride = B.stride();
  if (dE) g.dE = dE.data<float>(), g.dE_stride = dE.stride();
  if (dW) g.dW = dW.data<float>(), g.dW_stride = dW.stride();
  g.d = log_a_real.size(0), g.n = log_a_real.size(1), g.bilinear = bilinear;
  g.dlog_dt = dlog_dt.data<float>(), g.dlog_a_real = dlog_a_real.data<float>();
  g.da_imag = da_imag.data<float>();
  if (B) g.dB = reinterpret_cast<float2*>(dB.data<float>());
  g.dC = reinterpret_cast<float2*>(dC.data<float>());
  const int64_t blocks = (g.d + 3) / 4;
  if (blocks > 0) discretize_back<<<static_cast<unsigned>(blocks), 128, 0, s.handle>>>(g);
}
KERNEL(s4d_discretize_backward)

}  // namespace ss::cuda
