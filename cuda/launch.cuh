// The one way in which kernels of a chain are launched: early. Where the card can (capability 9.0),
// a kernel's blocks start as soon as all blocks of the kernel before it on the stream have said
// let_next_start() or ended; in a captured graph this becomes a programmatic edge. What such a kernel
// owes in return stands in device/dependent.cuh.
#pragma once
#include <cuda_runtime.h>

#include "device/dependent.cuh"

namespace ss::cuda {

struct Grid {
  dim3 blocks, threads;
  size_t shared = 0;     // bytes of dynamic shared memory
  unsigned cluster = 1;  // neighbouring blocks that read each other's shared memory; from 9.0 on
  bool together = false;  // all blocks run at the same time, or it fails; not started early
};

// Of the device that is current; a thread stays with one, its queue's.
inline bool starts_early() {
  static thread_local const bool early = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return early;
}

// kernel<<<grid.blocks, grid.threads, grid.shared, stream>>>(arguments...), started early. A failure
// is what cudaGetLastError() returns next, as with <<<>>>.
template <class... P, class... A>
void launch(cudaStream_t stream, void (*kernel)(P...), const Grid& grid, A&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream;
  config.attrs = attributes;
  if (grid.together) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
  } else if (starts_early()) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {grid.cluster, 1, 1};
  }
  cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

}  // namespace ss::cuda
