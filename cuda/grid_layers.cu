// A decode step's layers for 2 to 32 sequences of 1.4b and 2.8b: how device/grid_layers.cuh is launched.
#include "device/grid_layers.cuh"

#include "card.h"
#include "launch.cuh"
#include "layer_steps.h"
#include "tensor_map.h"

namespace ss::cuda {

#ifdef SS_HOPPER  // built with machine code of 9.0a
namespace {

// Whether all blocks run at once on the device that is current.
template <class Size, class T>
bool runs_at_once(void (*kernel)(GridLayers<T>)) {
  int device = 0, cooperative = 0, at_once = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  constexpr int kBytes = sizeof(GridWhole<Size>);
  if (!cooperative || !is_hopper() || shared_bytes() < kBytes ||
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, kGridThreads + 32 * kGridAskers, kBytes))
    return cudaGetLastError(), false;
  return at_once * multiprocessors() >= kGridBlocks;
}

// Memory that blocks leave each other things in.
template <class T, class Size>
bool give_room(Stream& stream, GridLayers<T>& s, DType type) {
  static_assert(kToldWords < Exchange::kTold);
  s.told = stream.exchange->told();
  char* at = static_cast<char*>(stream.blas->room());
  if (!s.told || !at) return false;
  char* const begin = at;
  const auto take = [&](auto*& to, int64_t count) {
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(at);
    at += count * static_cast<int64_t>(sizeof(*to));
  };
  take(s.to_normed, int64_t{kGridRows} * Size::m);
  take(s.to_dbc, int64_t{kGridRows} * Size::k);
  take(s.to_gated, int64_t{kGridRows} * Size::d);
  take(s.shares, int64_t{kGridBlocks} * kGridRows * Size::k);
  take(s.mixed, int64_t{kGridBlocks} * kGridRows * Size::columns);
  s.tall = (s.count + 7) / 8 * 8;
  return at <= begin + Blas::kRoom && tile_map(s.normed, s.to_normed, type, s.count, Size::m, s.tall) &&
         tile_map(s.dbc, s.to_dbc, type, s.count, Size::k, s.tall) &&
         tile_map(s.gated, s.to_gated, type, s.count, Size::d, s.tall) &&
         plain_map(s.own_gated, s.to_gated, type, s.count, Size::d, kGridRows, Size::channels);
}

template <int Model, class S, class T>
bool launch_model(Stream& stream, const MambaCall* const* calls, GridLayers<T>& s) {
  using Size = GridSizes<Model>;
  const auto kernel = grid_layers<T, S, Model>;
  // A thread stays with one device, its queue's.
  static thread_local const bool fits = runs_at_once<Size>(kernel);
  const DType type = calls[0]->y.dtype();
  if (!fits || !give_room<T, Size>(stream, s, type)) return false;
  for (int i = 0; i < s.layers; i++) {
    const MambaCall& call = *calls[i];
    GridLayer<T>& l = s.layer[i];
    if (!tile_map(l.in_proj, call.in_proj.view->data, type, 2 * Size::d, Size::m, Size::channels) ||
        !tile_map(l.x_proj, call.x_proj.view->data, type, Size::k, Size::d, Size::half) ||
        !tile_map(l.dt_proj, call.dt_weight.view->data, type, Size::d, Size::r, Size::channels) ||
        !tile_map(l.out_proj, call.out_proj.view->data, type, Size::m, Size::d, Size::columns))
      return false;
  }
  Grid grid{unsigned{kGridBlocks}, unsigned{kGridThreads + 32 * kGridAskers}};
  grid.shared = sizeof(GridWhole<Size>), grid.together = true;
  launch(stream.handle, kernel, grid, s);
  return true;
}

template <class S, class T>
bool launch_states(Stream& stream, const MambaCall* const* calls, GridLayers<T>& s) {
  switch (calls[0]->residual.size(1)) {
    case 2048: return launch_model<2048, S>(stream, calls, s);
    case 2560: return launch_model<2560, S>(stream, calls, s);
  }
  return false;
}

template <class T>
bool launch_type(Stream& stream, const MambaCall* const* calls, int count) {
  GridLayers<T> s{};
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
    GridLayer<T>& l = s.layer[i];
    l.norm = c.norm_weight.data<float>();
    l.conv_weight = c.conv_weight.data<float>();
    l.conv_bias = c.conv_bias ? c.conv_bias.data<float>() : nullptr;
    l.conv_state = c.conv_state.data<T>();
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
#endif

bool steps_in_grid(const MambaCall& call) {
#ifdef SS_HOPPER
  constexpr int64_t kMost = 32;  // of the kernel's 64 rows: of more the ops are as fast
  const int64_t m = call.residual.size(1), sequences = call.residual.size(0);
  const DType state = call.scan_state.dtype();
  return (m == 2048 || m == 2560) && sequences > 1 && sequences <= kMost &&
         (state == DType::f32 || state == call.y.dtype());
#else
  return false;
#endif
}

bool launch_grid_layers(Stream& stream, const MambaCall* const* calls, int count) {
#ifdef SS_HOPPER
  return calls[0]->y.dtype() == DType::bf16 ? launch_type<__nv_bfloat16>(stream, calls, count)
                                            : launch_type<__half>(stream, calls, count);
#else
  return false;
#endif
}

}  // namespace ss::cuda
