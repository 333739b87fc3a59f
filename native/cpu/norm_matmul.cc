// sum = residual + x, normed = rms_norm(sum), y = normed W^T + bias: the ops it stands for, in turn.
#include "simd.h"

namespace ss::SS_LEVEL {

void rms_norm(Stream& s, In x, In weight, float eps, Out y);
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total);
void cast(Stream& s, In x, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);

// [t, d]?, [t, d], [d], [n, d], [n]? -> [t, n], [t, d], [t, d]
void norm_matmul(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                 Out y, Out sum, Out normed) {
  if (x) {
    add_rms_norm(s, In{x.view}, residual, norm_weight, eps, normed, sum);
  } else {
    cast(s, residual, sum);
    rms_norm(s, residual, norm_weight, eps, normed);
  }
  matmul(s, In{normed.view}, weight, bias, y);
}
KERNEL(norm_matmul)

}  // namespace ss::SS_LEVEL
