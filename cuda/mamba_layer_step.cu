// A layer of a decode step, norm and both projections included:
//   sum = residual + x,  normed = rms_norm(sum),  xz = normed in_proj^T
//   gated = mamba_step(xz, ..),  y = gated out_proj^T
// with the roundings of those ops. One sequence, one half type for all, and the sizes of a published
// model: a kernel whose blocks run at the same time (device/mamba_layers.cuh), which in a recorded
// graph does the layers that follow one another in one launch. It moves the weights once: bound by
// memory for wide models, by four exchanges a layer for narrow ones. The rest goes through the ops, but for
// out_proj of many sequences (device/step_out.cuh).
#include "layer_steps.h"
#include "step_kernels.h"

namespace ss::cuda {

void norm_matmul(Stream&, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps, Out y,
                 Out sum, Out normed);
void matmul(Stream&, In x, In weight, Opt bias, Out y);

void mamba_layer_step(Stream& stream, Opt x, In residual, In norm_weight, In in_proj, In conv_weight,
                      Opt conv_bias, InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A,
                      In D, InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y,
                      Out sum, Out normed, Out xz, Out u, Out dbc, Out gated) {
  if (step_layers(stream, mamba_call(x, residual, norm_weight, in_proj, conv_weight, conv_bias,
                                     conv_state, x_proj, dt_weight, dt_bias, A, D, scan_state,
                                     out_proj, offsets, slots, eps, y, sum, normed, xz, u, dbc, gated)))
    return;
  norm_matmul(stream, x, residual, norm_weight, in_proj, Opt{}, eps, xz, sum, normed);
  const bool in_order =
      mamba_step_in_order(stream, In{xz.view}, conv_weight, conv_bias, conv_state, x_proj, dt_weight,
                          dt_bias, A, D, scan_state, offsets, slots, gated, u, dbc);
  if (!step_out(stream, In{gated.view}, out_proj, y, in_order))
    matmul(stream, In{gated.view}, out_proj, Opt{}, y);
}
KERNEL(mamba_layer_step)

}  // namespace ss::cuda
