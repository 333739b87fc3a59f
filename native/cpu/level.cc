// The kernels of one instruction level. Compiled once per level, before any kernel file runs.
#include "simd.h"

namespace ss::SS_LEVEL {
constinit const Kernel* kernels = nullptr;
}
