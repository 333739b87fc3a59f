#include "faults.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace ss::cuda {

Faults::Faults() {
  void* memory = nullptr;
  const size_t bytes = kMost * sizeof(Fault);
  if (const cudaError_t error =
          cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable))
    throw std::runtime_error(cudaGetErrorString(error));
  memory_ = static_cast<Fault*>(memory);
  for (int i = 0; i < kMost; i++) memory_[i] = {kNoFault, 0};
}
Faults::~Faults() { cudaFreeHost(memory_); }

Fault* Faults::at(const char* op, const char* format) {
  for (int i = 0; i < count_; i++)
    if (sites_[i].op == op && std::strcmp(sites_[i].format, format) == 0) return memory_ + i;
  if (count_ == kMost) return memory_ + kMost - 1;  // under another's name, but not lost
  sites_[count_] = {op, format};
  return memory_ + count_++;
}

bool Faults::take(char* text, size_t size) {
  bool found = false;
  for (int i = 0; i < count_; i++) {
    const Fault fault = memory_[i];
    if (fault.place == kNoFault) continue;
    memory_[i] = {kNoFault, 0};
    if (found) continue;
    found = true;
    char message[192];
    std::snprintf(message, sizeof message, sites_[i].format,
                  static_cast<long long>(fault.place >> 32),
                  static_cast<int>(static_cast<uint32_t>(fault.place)), fault.limit);
    std::snprintf(text, size, "%s: %s", sites_[i].op, message);
  }
  return found;
}

}  // namespace ss::cuda
