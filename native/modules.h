// Opens devices: the CPU, which is built in, and modules that stand beside the addon.
#pragma once
#include <string>

#include "backend.h"

namespace ss {

// "cpu" or "cuda". Returns nullptr and sets `why` to all that was tried when there is no such device.
Backend* open_device(const std::string& kind, int index, std::string& why);

}  // namespace ss
