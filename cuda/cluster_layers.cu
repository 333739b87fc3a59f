// A decode step's layers for 2 to 168 sequences of 130m: how device/cluster_layers.cuh is launched.
#include <algorithm>

#include "card.h"
#include "device/cluster_layers.cuh"
#include "launch.cuh"
#include "layer_steps.h"
#include "tensor_map.h"

namespace ss::cuda {
namespace {

// Clusters that run at once on an H100, and the most tiles of rows of one: beyond, the ops are faster.
constexpr int kClusters = 7, kMostTiles = 3;
// Each cluster reads all weights: as many of few sequences are one cluster's before there is another.
constexpr int kFewRows = 4;

// How the kernel fits the card that is current. No clusters: not at all.
struct ClusterRoom {
  int stages = 0, bytes = 0, clusters = 0;  // clusters: that run at once
};

template <class Size, class T>
ClusterRoom cluster_room(void (*kernel)(ClusterLayers<T>)) {
  constexpr int kRest = sizeof(ClusterMemory<T, Size>);
  ClusterRoom room;
  room.stages = std::min((shared_bytes() - kRest) / Size::stage_bytes, kClusterStages);
  if (!is_hopper() || room.stages < 3) return {};
  room.bytes = room.stages * Size::stage_bytes + kRest;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kClusterBlocks, config.blockDim = Size::threads + 32;
  config.dynamicSmemBytes = static_cast<size_t>(room.bytes);
  config.attrs = &cluster, config.numAttrs = 1;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ||
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room.bytes) ||
      cudaOccupancyMaxActiveClusters(&room.clusters, kernel, &config))
    return cudaGetLastError(), ClusterRoom{};
  return room;
}

template <class S, int Model, int Tiles, class T>
bool launch_tiles(Stream& stream, const MambaCall* const* calls, ClusterLayers<T>& s, int clusters) {
  using Size = ClusterSizes<Model, Tiles>;
  const auto kernel = cluster_layers<T, S, Model, Tiles>;
  // A thread stays with one device, its queue's.
  static thread_local const ClusterRoom room = cluster_room<Size>(kernel);
  if (room.clusters == 0) return false;
  for (int i = 0; i < s.layers; i++) {
    const MambaCall& call = *calls[i];
    if (!tile_map(s.layer[i].in_proj, call.in_proj.view->data, call.y.dtype(), 2 * Size::d, Size::m,
                  Size::channels) ||
        !tile_map(s.layer[i].out_proj, call.out_proj.view->data, call.y.dtype(), Size::m, Size::d,
                  Size::out_rows))
      return false;
  }
  s.stages = room.stages;
  launch(stream.handle, kernel,
         Grid{static_cast<unsigned>(clusters * kClusterBlocks),
              static_cast<unsigned>(Size::threads + 32), static_cast<size_t>(room.bytes),
              unsigned{kClusterBlocks}},
         s);
  return true;
}

// Rows dealt evenly, in tiles of 8.
template <class S, class T>
bool launch_states(Stream& stream, const MambaCall* const* calls, ClusterLayers<T>& s) {
  const int clusters = std::min((s.count + kFewRows - 1) / kFewRows, kClusters);
  switch ((s.count + 8 * clusters - 1) / (8 * clusters)) {
    case 1: return launch_tiles<S, 768, 1>(stream, calls, s, clusters);
    case 2: return launch_tiles<S, 768, 2>(stream, calls, s, clusters);
    default: return launch_tiles<S, 768, 3>(stream, calls, s, clusters);
  }
}

template <class T>
bool launch_type(Stream& stream, const MambaCall* const* calls, int count) {
  ClusterLayers<T> s{};
  const MambaCall& first = *calls[0];
  s.x = first.x ? first.x.template data<T>() : nullptr;
  s.residual = first.residual.data<float>();
  s.offsets = first.offsets.data<int32_t>(), s.slots = first.slots.data<int32_t>();
  s.pool = first.scan_state.size(0);
  s.layers = count, s.count = static_cast<int>(first.residual.size(0));
  s.eps = first.eps;
  s.bad_offset = stream.fault("offsets[%lld] is %d, expected %lld: one token of each sequence");
  s.bad_slot = stream.fault("slots[%lld] is %d, expected less than %lld, the rows of state");
  for (int i = 0; i < count; i++) {
    const MambaCall& c = *calls[i];
    ClusterLayer<T>& l = s.layer[i];
    l.norm = c.norm_weight.data<float>();
    l.conv_weight = c.conv_weight.data<float>();
    l.conv_bias = c.conv_bias ? c.conv_bias.data<float>() : nullptr;
    l.conv_state = c.conv_state.data<T>();
    l.x_proj = c.x_proj.data<T>(), l.dt_weight = c.dt_weight.data<T>();
    l.dt_bias = c.dt_bias.data<float>(), l.A = c.A.data<float>(), l.D = c.D.data<float>();
    l.scan_state = c.scan_state.view->data;
    l.sum = c.sum.data<float>();
    l.normed = c.normed.data<T>(), l.xz = c.xz.data<T>(), l.u = c.u.data<T>();
    l.dbc = c.dbc.data<T>(), l.gated = c.gated.data<T>(), l.y = c.y.data<T>();
  }
  return first.scan_state.dtype() == DType::f32 ? launch_states<float>(stream, calls, s)
                                                : launch_states<T>(stream, calls, s);
}

}  // namespace

bool steps_in_clusters(const MambaCall& call) {
  const int64_t sequences = call.residual.size(0);
  const DType state = call.scan_state.dtype();
  return call.residual.size(1) == 768 && sequences > 1 && sequences <= kClusters * kMostTiles * 8 &&
         (state == DType::f32 || state == call.y.dtype());
}

bool launch_cluster_layers(Stream& stream, const MambaCall* const* calls, int count) {
  return calls[0]->y.dtype() == DType::bf16 ? launch_type<__nv_bfloat16>(stream, calls, count)
                                            : launch_type<__half>(stream, calls, count);
}

}  // namespace ss::cuda
