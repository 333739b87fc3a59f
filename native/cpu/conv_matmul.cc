// u = silu(conv(x)), y = u W^T: the ops it stands for, in turn.
#include "simd.h"

namespace ss::SS_LEVEL {

void causal_conv1d(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

// [t, d], [d, w], [d]?, [s + 1], [s]?, [p, d, w - 1]?, [n, d] -> [t, n], [t, d]
void conv_matmul(Stream& s, In x, In taps, Opt bias, In offsets, Opt slots, OptInOut state,
                 In weight, Out y, Out u) {
  causal_conv1d(s, x, taps, bias, offsets, slots, state, true, u);
  matmul(s, In{u.view}, weight, Opt{}, y);
}
KERNEL(conv_matmul)

}  // namespace ss::SS_LEVEL
