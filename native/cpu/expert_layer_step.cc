// A mixture of experts in a decode step: the ops it stands for, in turn.
#include "simd.h"

namespace ss::SS_LEVEL {

void norm_route_up(Stream& s, Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                   Opt up_bias, float eps, int64_t k, bool sigmoid, bool normalize, int64_t kind,
                   int64_t h, Out sum, Out normed, Out logits, Out experts, Out weights, Out hidden);
void expert_sum(Stream& s, In hidden, In weight, Opt bias, In experts, In weights, Out y);

void expert_layer_step(Stream& stream, Opt x, In residual, In norm_weight, In router,
                       Opt router_bias, In up, Opt up_bias, In down, Opt down_bias, float eps,
                       int64_t k, bool sigmoid, bool normalize, int64_t kind, Out y,
                       Out sum, Out normed, Out logits, Out experts, Out weights, Out hidden) {
  norm_route_up(stream, x, residual, norm_weight, router, router_bias, up, up_bias, eps, k, sigmoid,
                normalize, kind, down.size(2), sum, normed, logits, experts, weights, hidden);
  expert_sum(stream, In{hidden.view}, down, down_bias, In{experts.view}, In{weights.view}, y);
}
KERNEL(expert_layer_step)

}  // namespace ss::SS_LEVEL
