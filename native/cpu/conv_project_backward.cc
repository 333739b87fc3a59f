// The gradients of causal_conv1d where its result was also multiplied by a matrix: the ops it stands for, in turn.
#include "room.h"
#include "simd.h"

namespace ss::SS_LEVEL {

void matmul_input_gradient(Stream& s, In dy, In weight, Opt plus, Out dx);
void causal_conv1d_backward(Stream& s, In x, In weight, Opt bias, In offsets, In dy, bool silu, Out dx, Out dweight,
                            Out dbias);

// [t, d], [d, w], [d]?, [s + 1], [t, d], [t, k], [k, d] -> [t, d], [d, w], [d]?
void conv_project_backward(Stream& s, In x, In weight, Opt bias, In offsets, In dy, In dproduct, In projection,
                           bool silu, Out dx, Out dweight, Out dbias) {
  const int64_t t = x.size(0), d = x.size(1);
  const Room room(s, t * d);  // as floats, also of halves
  if (!room) return;
  const View sum{room.floats(), {t, d}, d, 2, x.dtype()};
  matmul_input_gradient(s, dproduct, projection, Opt{dy.view}, Out{&sum});
  causal_conv1d_backward(s, x, weight, bias, offsets, In{&sum}, silu, dx, dweight, dbias);
}
KERNEL(conv_project_backward)

}  // namespace ss::SS_LEVEL
