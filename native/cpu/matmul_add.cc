// sum = residual + x W^T + bias: the ops it stands for, in turn.
#include "simd.h"

namespace ss::SS_LEVEL {

void matmul(Stream& s, In x, In weight, Opt bias, Out y);
void add(Stream& s, In a, In b, Out y);

// [m, k], [n, k], [n]?, [m, n] -> [m, n]
void matmul_add(Stream& s, In x, In weight, Opt bias, In residual, Out sum) {
  matmul(s, x, weight, bias, sum);
  add(s, In{sum.view}, residual, sum);
}
KERNEL(matmul_add)

}  // namespace ss::SS_LEVEL
