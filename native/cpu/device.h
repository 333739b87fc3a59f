// The CPU as a device: a thread that works through a queue, and the pool under it.
#pragma once
#include "../backend.h"

namespace ss {

// Never fails: a processor is always there.
Backend* open_cpu();

}  // namespace ss
