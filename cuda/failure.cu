#include "failure.h"

#include <cstdio>

namespace ss::cuda {
namespace {

// After these the process can do nothing more with the card, says CUDA.
bool costs_the_context(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

void Failure::note(cudaError_t error, const char* during) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call must not meet it
  const char* text = cudaGetErrorString(error);
  std::lock_guard lock(mutex_);
  if (lost_) return;
  if (costs_the_context(error)) {
    status_.code = Status::lost;
    std::snprintf(status_.text, sizeof status_.text,
                  "the CUDA device is lost: %s, seen during %s; start the process again", text, during);
    lost_ = true;
  } else if (status_.code == Status::ok) {
    status_.code = Status::failed;
    std::snprintf(status_.text, sizeof status_.text, "%s: %s", during, text);
  }
}

Status Failure::take() {
  std::lock_guard lock(mutex_);
  const Status status = status_;
  if (!lost_) status_ = {};
  return status;
}

}  // namespace ss::cuda
