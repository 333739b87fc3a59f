// What mamba_layer_step is made of for many sequences, where that is not another op as it is.
#pragma once
#include "stream.h"

namespace ss::cuda {

// mamba_step. True: its last kernel calls let_next_start() after its own wait, so that once the next one has
// started all before that last one have ended.
bool mamba_step_in_order(Stream& stream, In xz, In conv_weight, Opt conv_bias, InOut conv_state,
                         In x_proj, In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets,
                         In slots, Out y, Out u, Out dbc);

// y = x W^T for 17 to 256 rows of halves on Hopper, if the blocks that this takes run all at once; else false:
// nothing is done.
// `ahead`: the kernel before on this stream calls let_next_start() after its own wait, and does not write W.
bool step_out(Stream& stream, In x, In weight, Out y, bool ahead);

}  // namespace ss::cuda
