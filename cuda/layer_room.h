// How a kernel whose blocks run at the same time, and bring weights through a ring, fits the card.
#pragma once
#include "card.h"
#include "device/mamba_layer.cuh"
#include "exchange.h"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {

// No stages: all blocks cannot run at once here.
struct LayerRoom {
  int stages = 0, bytes = 0;
};

// Of the device that is current. `tile` and `rest` are bytes: of a stage of the ring, and beside it.
template <class... P>
LayerRoom layer_room(void (*kernel)(P...), int tile, int rest) {
  int device = 0, most = 0, cooperative = 0, at_once = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  LayerRoom found{(most - rest) / tile, 0};
  if (found.stages > kMostStages) found.stages = kMostStages;
  if (!cooperative || found.stages <= kTilesAhead) return {};
  found.bytes = found.stages * tile + rest;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.bytes) ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, kLayerThreads + 32,
                                                    static_cast<size_t>(found.bytes)))
    return cudaGetLastError(), LayerRoom{};
  return at_once * multiprocessors() >= kLayerBlocks ? found : LayerRoom{};
}

// kernel(s), if it fits.
template <class L>
bool launch_together(Stream& stream, void (*kernel)(L), const LayerRoom& room, L& s) {
  if (room.stages == 0) return false;
  s.stages = room.stages;
  Grid grid{unsigned{kLayerBlocks}, unsigned{kLayerThreads + 32}};
  grid.shared = static_cast<size_t>(room.bytes), grid.together = true;
  launch(stream.handle, kernel, grid, s);
  return true;
}

}  // namespace ss::cuda
