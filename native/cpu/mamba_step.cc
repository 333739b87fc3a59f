// A Mamba mixer between its in_proj and out_proj, for one token of each sequence: the ops that a
// long sequence goes through, one after the other, so that a step has the bits of those.
#include "sequences.h"
#include "simd.h"

namespace ss::SS_LEVEL {

void causal_conv1d(Stream&, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y);
void matmul(Stream&, In x, In weight, Opt bias, Out y);
void selective_scan(Stream&, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y);

namespace {

// Columns [begin, end) of a matrix.
View columns(const View& x, int64_t begin, int64_t end) {
  View part = x;
  part.data = static_cast<char*>(x.data) + begin * size_of(x.dtype);
  part.shape[1] = end - begin;
  return part;
}
// The same as one group of coefficients a token.
View group(const View& x, int64_t begin, int64_t end) {
  View part = columns(x, begin, end);
  part.rank = 3, part.shape[2] = part.shape[1], part.shape[1] = 1;
  return part;
}

}  // namespace

void mamba_step(Stream& stream, In xz, In conv_weight, Opt conv_bias, InOut conv_state, In x_proj,
                In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets, In slots, Out y,
                Out u, Out dbc) {
  const int64_t b = xz.size(0), d = A.size(0), n = A.size(1), r = dt_weight.size(1);
  for (int64_t i = 0; i <= b; i++) {
    const int at = offsets.data<int32_t>()[i];
    if (at != i)
      return stream.fail("offsets[%d] is %d, expected %d: one token of each sequence", int(i), at,
                         int(i));
  }
  if (!sequences(offsets, Opt{slots.view}, OptInOut{conv_state.view}).check(stream, b)) return;
  const View x = columns(*xz.view, 0, d), z = columns(*xz.view, d, 2 * d);
  const View rank = columns(*dbc.view, 0, r);
  const View B = group(*dbc.view, r, r + n), C = group(*dbc.view, r + n, r + 2 * n);
  causal_conv1d(stream, In{&x}, conv_weight, conv_bias, offsets, Opt{slots.view},
                OptInOut{conv_state.view}, true, u);
  matmul(stream, In{u.view}, x_proj, Opt{}, dbc);
  // delta lies where y will: the scan reads a token's before it writes there.
  matmul(stream, In{&rank}, dt_weight, Opt{}, y);
  selective_scan(stream, In{u.view}, In{y.view}, A, In{&B}, In{&C}, Opt{D.view}, Opt{&z},
                 Opt{dt_bias.view}, offsets, Opt{slots.view}, OptInOut{scan_state.view}, true, y);
}
KERNEL(mamba_step)

}  // namespace ss::SS_LEVEL
