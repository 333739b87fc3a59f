// E = Abar - 1 and W = C Bbar of a diagonal system, one complex number a state: by zero-order hold
//   E = exp(dt A) - 1, Bbar = E / A;   by the bilinear rule E = dt A / (1 - dt A / 2), Bbar = E / A
// with A = -exp(log_a_real) + i a_imag, dt = exp(log_dt). In f64: once for each set of weights.
#include "s4d_state.h"

namespace ss::SS_LEVEL {

void s4d_discretize(Stream& s, In log_dt, In log_a_real, In a_imag, Opt B, In C, bool bilinear, Out E,
                    Out W) {
  const int64_t d = log_a_real.size(0), n = log_a_real.size(1);
  s.parallel(d, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; c++) {
      const double dt = exp(static_cast<double>(log_dt.data<float>()[c]));
      for (int64_t j = 0; j < n; j++) {
        const S4dState state =
            s4d_state(dt, log_a_real.row<float>(c)[j], a_imag.row<float>(c)[j], bilinear);
        Complex input = state.input;
        if (B) input = times(input, complex_at(B.row<float>(c), j));
        const Complex w = times(input, complex_at(C.row<float>(c), j));
        put_complex(E.row<float>(c), j, state.e);
        put_complex(W.row<float>(c), j, w);
      }
    }
  });
}
KERNEL(s4d_discretize)

}  // namespace ss::SS_LEVEL
