// E = Abar - 1 and W = C Bbar of a diagonal system, one complex number a state: by zero-order hold
//   E = exp(dt A) - 1, Bbar = E / A;   by the bilinear rule E = dt A / (1 - dt A / 2), Bbar = E / A
// with A = -exp(log_a_real) + i a_imag, dt = exp(log_dt). A thread makes one state, in f64: once for
// each set of weights.
#include "device/s4d_state.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

struct Given {
  const float *log_dt, *log_a_real, *a_imag, *B, *C;
  int64_t log_a_stride, a_imag_stride, B_stride, C_stride;
  int64_t d, n;
  bool bilinear;
};

__device__ Complex pair(const float* row, int64_t j) { return {row[2 * j], row[2 * j + 1]}; }

__global__ void discretize(const Given g, float2* E, float2* W) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= g.d * g.n) return;
  const int64_t c = i / g.n, j = i % g.n;
  const double dt = exp(static_cast<double>(g.log_dt[c]));
  const S4dState state = s4d_state(dt, g.log_a_real[c * g.log_a_stride + j],
                                   g.a_imag[c * g.a_imag_stride + j], g.bilinear);
  Complex input = state.input;
  if (g.B) input = times(input, pair(g.B + c * g.B_stride, j));
  const Complex w = times(input, pair(g.C + c * g.C_stride, j));
  E[i] = rounded(state.e);
  W[i] = rounded(w);
}

}  // namespace

void s4d_discretize(Stream& s, In log_dt, In log_a_real, In a_imag, Opt B, In C, bool bilinear, Out E,
                    Out W) {
  Given g{};
  g.log_dt = log_dt.data<float>(), g.log_a_real = log_a_real.data<float>();
  g.a_imag = a_imag.data<float>(), g.C = C.data<float>();
  g.log_a_stride = log_a_real.stride(), g.a_imag_stride = a_imag.stride(), g.C_stride = C.stride();
  if (B) g.B = B.data<float>(), g.B_stride = B.stride();
  g.d = log_a_real.size(0), g.n = log_a_real.size(1), g.bilinear = bilinear;
  const int64_t blocks = (g.d * g.n + 127) / 128;
  if (blocks == 0) return;
  discretize<<<static_cast<unsigned>(blocks), 128, 0, s.handle>>>(
      g, reinterpret_cast<float2*>(E.data<float>()), reinterpret_cast<float2*>(W.data<float>()));
}
KERNEL(s4d_discretize)

}  // namespace ss::cuda
