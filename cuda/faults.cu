#include "faults.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace ss::cuda {

Faults::Faults() {
  void* memory = nullptr;
  const size_t bytes = kMost * sizeof(Fault);
  cudaError_t error = cudaMalloc(&memory, bytes);
  memory_ = static_cast<Fault*>(memory);
  if (!error) error = cudaMemset(memory_, 0xff, bytes);  // kNoFault
  if (!error) error = cudaDeviceSynchronize();           // other streams may report from now on
  if (error) throw std::runtime_error(cudaGetErrorString(error));
}
Faults::~Faults() { cudaFree(memory_); }

Fault* Faults::at(const char* op, const char* format) {
  for (int i = 0; i < count_; i++)
    if (sites_[i].op == op && std::strcmp(sites_[i].format, format) == 0) return memory_ + i;
  if (count_ == kMost) return memory_ + kMost - 1;  // under another's name, but not lost
  sites_[count_] = {op, format};
  return memory_ + count_++;
}

void Faults::describe(const Fault* seen, Status& status) const {
  for (int i = 0; i < kMost; i++) {
    if (seen[i].place == kNoFault) continue;
    char message[192];
    std::snprintf(message, sizeof message, sites_[i].format,
                  static_cast<long long>(seen[i].place >> 32),
                  static_cast<int>(static_cast<uint32_t>(seen[i].place)), seen[i].limit);
    status.code = Status::failed;
    std::snprintf(status.text, sizeof status.text, "%s: %s", sites_[i].op, message);
    return;
  }
}

}  // namespace ss::cuda
