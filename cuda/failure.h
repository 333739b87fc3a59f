// What failed on one device since somebody last asked. Used by the thread that feeds the stream and
// by the one that waits for it.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <mutex>

#include "../native/backend.h"

namespace ss::cuda {

class Failure {
 public:
  void note(cudaError_t error, const char* during);  // remembers the first; success is none
  Status take();                                     // what was noted since; `lost` stays
  bool lost() const { return lost_; }

 private:
  std::mutex mutex_;
  Status status_{};
  std::atomic<bool> lost_{false};
};

}  // namespace ss::cuda
