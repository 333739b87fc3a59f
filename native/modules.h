// Opens devices: the CPU, which is built in, and modules that stand beside the addon.
#pragma once
#include <string>

#include "backend.h"

namespace ss {

// "cpu" or "cuda". Returns nullptr and sets `why` to all that was tried when there is no such device.
Backend* open_device(const std::string& kind, int index, std::string& why);

// Node unloads an addon with the last worker thread that loaded it, but the pool's threads sleep in
// this one's code: it stays until the process ends.
void stay_loaded();

}  // namespace ss
