// Real FFTs by PFFFT (native/third_party/pffft): what its setups cost once, shared by all threads.
#pragma once
#include <stdint.h>

#include "../third_party/pffft/pffft.h"

namespace ss {

// The largest transform: PFFFT counts in int.
constexpr int64_t kMostFft = int64_t{1} << 30;

// The least size that is at least `least` and fast: 4, 5 or 6 times a power of two, 32 or more.
int64_t fft_size(int64_t least);
// For real transforms of a size that fft_size gave; kept until the process ends. Null: no memory.
PFFFT_Setup* fft_setup(int64_t size);

}  // namespace ss
