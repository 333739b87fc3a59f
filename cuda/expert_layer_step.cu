// A mixture of experts in a decode step, with its norm and residual, for one token: norm_route_up,
// then expert_sum, with the roundings of those ops. One expert of the token, one half type for all,
// and the sizes of a published model: a kernel whose blocks run at the same time, which in a recorded
// graph does the layers that follow one another, Mamba's too, in one launch (device/mixture_layers.cuh).
// It moves the chosen expert's weights once. The rest goes through the ops.
#include "layer_steps.h"

namespace ss::cuda {

void norm_route_up(Stream& s, Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                   Opt up_bias, float eps, int64_t k, bool sigmoid, bool normalize, int64_t kind,
                   int64_t h, Out sum, Out normed, Out logits, Out experts, Out weights, Out hidden);
void expert_sum(Stream& s, In hidden, In weight, Opt bias, In experts, In weights, Out y);

void expert_layer_step(Stream& stream, Opt x, In residual, In norm_weight, In router,
                       Opt router_bias, In up, Opt up_bias, In down, Opt down_bias, float eps,
                       int64_t k, bool sigmoid, bool normalize, int64_t kind, Out y,
                       Out sum, Out normed, Out logits, Out experts, Out weights, Out hidden) {
  if (step_layers(stream, expert_call(x, residual, norm_weight, router, router_bias, up, up_bias, down,
                                      down_bias, eps, k, sigmoid, normalize, kind, y, sum, normed,
                                      logits, experts, weights, hidden)))
    return;
  norm_route_up(stream, x, residual, norm_weight, router, router_bias, up, up_bias, eps, k, sigmoid,
                normalize, kind, down.size(2), sum, normed, logits, experts, weights, hidden);
  expert_sum(stream, In{hidden.view}, down, down_bias, In{experts.view}, In{weights.view}, y);
}
KERNEL(expert_layer_step)

}  // namespace ss::cuda
