// sum = residual + x, normed = rms_norm(sum), and the experts that its router chooses: the ops that
// it stands for, in turn.
#include "simd.h"
#include "temporary.h"

namespace ss::SS_LEVEL {

void rms_norm(Stream& s, In x, In weight, float eps, Out y);
void add_rms_norm(Stream& s, In x, In residual, In weight, float eps, Out y, Out total);
void cast(Stream& s, In x, Out y);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);
void route_experts(Stream& s, In logits, Opt scores, int64_t k, bool sigmoid, bool normalize,
                   Out experts, Out weights, Out probs);

// [t, d]?, [t, d], [d], [e, d], [e]? -> [t, d], [t, d], [t, e], [t, k], [t, k]
void norm_route(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                int64_t k, bool sigmoid, bool normalize, Out sum, Out normed, Out logits,
                Out experts, Out weights) {
  const int64_t t = residual.size(0), e = weight.size(0);
  const Temporary memory(s, t * e * int64_t{sizeof(float)});
  if (!memory) return;
  if (x) {
    add_rms_norm(s, In{x.view}, residual, norm_weight, eps, normed, sum);
  } else {
    cast(s, residual, sum);
    rms_norm(s, residual, norm_weight, eps, normed);
  }
  matmul(s, In{normed.view}, weight, bias, logits);
  const View probs = memory.matrix(t, e, DType::f32);
  route_experts(s, In{logits.view}, Opt{}, k, sigmoid, normalize, experts, weights, Out{&probs});
}
KERNEL(norm_route)

}  // namespace ss::SS_LEVEL
