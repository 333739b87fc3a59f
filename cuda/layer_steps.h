// Calls of mamba_layer_step and expert_layer_step, as the kernels that do several layers take them.
#pragma once
#include <variant>

#include "device/mixture_layer.cuh"
#include "stream.h"

namespace ss::cuda {

// What a layer is given, and what it gives to the next one.
struct LayerEnds {
  Opt x;
  In residual, norm_weight;
  float eps;
  Out y, sum, normed;
};
struct MambaCall : LayerEnds {
  In in_proj, conv_weight;
  Opt conv_bias;
  InOut conv_state;
  In x_proj, dt_weight, dt_bias, A, D;
  InOut scan_state;
  In out_proj, offsets, slots;
  Out xz, u, dbc, gated;
};
struct ExpertCall : LayerEnds {
  In router;
  Opt router_bias;
  In up;
  Opt up_bias;
  In down;
  Opt down_bias;
  int64_t k, kind;
  bool sigmoid, normalize;
  Out logits, experts, weights, hidden;

  int64_t h() const { return down.size(2); }
};
using LayerCall = std::variant<MambaCall, ExpertCall>;

// Their arguments in the order of the ops.
MambaCall mamba_call(Opt x, In residual, In norm_weight, In in_proj, In conv_weight, Opt conv_bias,
                     InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A, In D,
                     InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y, Out sum,
                     Out normed, Out xz, Out u, Out dbc, Out gated);
ExpertCall expert_call(Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                       Opt up_bias, In down, Opt down_bias, float eps, int64_t k, bool sigmoid,
                       bool normalize, int64_t kind, Out y, Out sum, Out normed,
                       Out logits, Out experts, Out weights, Out hidden);

// One launch of layers of a model m wide, with experts h wide or, where that is 0, without; false if there
// is no such kernel, or not all of its blocks run at once here.
template <class T>
bool launch_mamba_layers(Stream& stream, int64_t m, Layers<T>& s);
template <class T>
bool launch_mixture_layers(Stream& stream, int64_t m, int64_t h, mixture::Layers<T>& s);

// The same for several sequences, `calls` Mamba layers of one step; false if clusters do not run here. Each is
// such a call, and its tensors are dense.
bool launch_cluster_layers(Stream& stream, const MambaCall* const* calls, int count);
bool steps_in_clusters(const MambaCall& call);

// The same for wide models; what a layer gives may lie where an earlier one's lay, since its layers are in order.
bool launch_grid_layers(Stream& stream, const MambaCall* const* calls, int count);
bool steps_in_grid(const MambaCall& call);

// Does this layer and, in a recorded graph, those that follow it, in one launch; false if the kernel
// takes no such layer, or not all of its blocks run at once here: then nothing is done.
bool step_layers(Stream& stream, const LayerCall& first);

}  // namespace ss::cuda
