// The two kernels that mamba_step takes for many sequences of a published model.
#pragma once
#include "device/mamba_step.cuh"
#include "stream.h"

namespace ss::cuda {

// False if there are no such kernels for these sizes and types, or they do not run here.
template <class T>
bool step_many_sequences(Stream& stream, const Step<T>& s, DType state);

}  // namespace ss::cuda
