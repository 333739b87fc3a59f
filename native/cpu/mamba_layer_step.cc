// A layer of a decode step: the ops it stands for, in turn.
#include "simd.h"

namespace ss::SS_LEVEL {

void norm_matmul(Stream&, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps, Out y,
                 Out sum, Out normed);
void mamba_step(Stream&, In xz, In conv_weight, Opt conv_bias, InOut conv_state, In x_proj,
                In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets, In slots, Out y,
                Out u, Out dbc);
void matmul(Stream&, In x, In weight, Opt bias, Out y);

void mamba_layer_step(Stream& stream, Opt x, In residual, In norm_weight, In in_proj, In conv_weight,
                      Opt conv_bias, InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A,
                      In D, InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y,
                      Out sum, Out normed, Out xz, Out u, Out dbc, Out gated) {
  norm_matmul(stream, x, residual, norm_weight, in_proj, Opt{}, eps, xz, sum, normed);
  mamba_step(stream, In{xz.view}, conv_weight, conv_bias, conv_state, x_proj, dt_weight, dt_bias, A,
             D, scan_state, offsets, slots, gated, u, dbc);
  matmul(stream, In{gated.view}, out_proj, Opt{}, y);
}
KERNEL(mamba_layer_step)

}  // namespace ss::SS_LEVEL
