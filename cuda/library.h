// NVIDIA's libraries that are found and loaded at run time: where they may be, and how their calls
// get on with a capture.
#pragma once
#include <cuda_runtime.h>

#include <string>
#include <vector>

namespace ss::cuda {

// Paths to try for a library, the best place first; `names` are its file names, the best first. The
// environment variable `variable` names one path and nothing else; npm packages are those with
// `word` in their name.
std::vector<std::string> library_places(const char* variable, const std::vector<const char*>& names,
                                        const char* word);

// Said of a library that was not found: what to do, and what was tried.
std::string no_library(const char* variable, const std::vector<const char*>& names,
                       const char* package, const std::string& reasons);

// Memory may be allocated although this thread's stream is being captured.
struct Relaxed {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

}  // namespace ss::cuda
