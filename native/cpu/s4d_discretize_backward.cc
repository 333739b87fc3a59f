// The gradients of s4d_discretize, of which slope and curve (s4d_state.h) are the derivatives; * conjugates:
//   dC = (B input)* dW, dB = (C input)* dW, dA = (dt slope)* dE + (C B dt^2 curve)* dW,
//   d dt = Re((A slope)* dE + (C B slope)* dW), summed over a channel's states
// and by the parameters: dlog_dt = dt d dt, dlog_A_real = Re A Re dA, dA_imag = Im dA.
#include "s4d_state.h"

namespace ss::SS_LEVEL {

void s4d_discretize_backward(Stream& s, In log_dt, In log_a_real, In a_imag, Opt B, In C, Opt dE, Opt dW,
                             bool bilinear, Out dlog_dt, Out dlog_a_real, Out da_imag, Out dB, Out dC) {
  const int64_t d = log_a_real.size(0), n = log_a_real.size(1);
  s.parallel(d, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; c++) {
      const double dt = exp(static_cast<double>(log_dt.data<float>()[c]));
      double of_dt = 0;
      for (int64_t j = 0; j < n; j++) {
        const S4dState state =
            s4d_state(dt, log_a_real.row<float>(c)[j], a_imag.row<float>(c)[j], bilinear);
        const Complex b = B ? complex_at(B.row<float>(c), j) : Complex{1, 0};
        const Complex out = complex_at(C.row<float>(c), j), cb = times(out, b);
        const Complex e = dE ? complex_at(dE.row<float>(c), j) : Complex{};
        const Complex w = dW ? complex_at(dW.row<float>(c), j) : Complex{};
        const Complex dA = plus(against(times(dt, state.slope), e),
                                against(times(dt * dt, times(cb, state.curve)), w));
        of_dt += against(times(state.A, state.slope), e).re + against(times(cb, state.slope), w).re;
        dlog_a_real.row<float>(c)[j] = static_cast<float>(state.A.re * dA.re);
        da_imag.row<float>(c)[j] = static_cast<float>(dA.im);
        put_complex(dC.row<float>(c), j, against(times(b, state.input), w));
        if (B) put_complex(dB.row<float>(c), j, against(times(out, state.input), w));
      }
      dlog_dt.data<float>()[c] = static_cast<float>(dt * of_dt);
    }
  });
}
KERNEL(s4d_discretize_backward)

}  // namespace ss::SS_LEVEL
