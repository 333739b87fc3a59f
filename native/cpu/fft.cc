#include "fft.h"

#include <map>
#include <memory>
#include <mutex>

namespace ss {
namespace {

struct Destroy {
  void operator()(PFFFT_Setup* setup) const { pffft_destroy_setup(setup); }
};
// There are three sizes an octave, so that all of them together weigh a few times the largest.
struct Setups {
  std::mutex mutex;
  std::map<int64_t, std::unique_ptr<PFFFT_Setup, Destroy>> all;
};

}  // namespace

int64_t fft_size(int64_t least) {
  int64_t octave = 32;
  while (octave * 2 < least) octave *= 2;
  for (const int64_t quarters : {4, 5, 6})
    if (octave / 4 * quarters >= least && octave / 4 * quarters % 32 == 0)
      return octave / 4 * quarters;
  return octave * 2;
}

PFFFT_Setup* fft_setup(int64_t size) {
  static Setups setups;
  const std::lock_guard lock(setups.mutex);
  auto& setup = setups.all[size];
  if (!setup) setup.reset(pffft_new_setup(static_cast<int>(size), PFFFT_REAL));
  return setup.get();
}

}  // namespace ss
