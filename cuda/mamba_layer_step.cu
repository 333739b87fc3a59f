// A layer of a decode step, norm and both projections included:
//   sum = residual + x,  normed = rms_norm(sum),  xz = normed in_proj^T
//   gated = mamba_step(xz, ..),  y = gated out_proj^T
// with the roundings of those ops. One sequence, one half type for all, and the sizes of a published
// model: a kernel whose blocks run at the same time (device/mamba_layers.cuh), which in a recorded
// graph does the layers that follow one another in one launch. It moves the weights once: bound by
// memory for wide models, by four exchanges a layer for narrow ones. The rest goes through the ops.
#include <utility>

#include "card.h"
#include "device/mamba_layers.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {

void norm_matmul(Stream&, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps, Out y,
                 Out sum, Out normed);
void mamba_step(Stream&, In xz, In conv_weight, Opt conv_bias, InOut conv_state, In x_proj,
                In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets, In slots, Out y,
                Out u, Out dbc);
void matmul(Stream&, In x, In weight, Opt bias, Out y);
void mamba_layer_step(Stream&, Opt x, In residual, In norm_weight, In in_proj, In conv_weight,
                      Opt conv_bias, InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A, In D,
                      InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y, Out sum,
                      Out normed, Out xz, Out u, Out dbc, Out gated);

namespace {

// A call's arguments, in their order.
struct Call {
  Opt x;
  In residual, norm_weight, in_proj, conv_weight;
  Opt conv_bias;
  InOut conv_state;
  In x_proj, dt_weight, dt_bias, A, D;
  InOut scan_state;
  In out_proj, offsets, slots;
  float eps;
  Out y, sum, normed, xz, u, dbc, gated;
};
template <class... P, size_t... I>
Call read(const Arg* args, void (*)(Stream&, P...), std::index_sequence<I...>) {
  return {Slot<P>::get(args[I])...};
}
template <class... P>
Call read(const Arg* args, void (*kernel)(Stream&, P...)) {
  return read(args, kernel, std::index_sequence_for<P...>{});
}

// Rows that lie one after the other, from a multiple of 16 bytes on.
template <class P>
bool dense(P tensor) {
  int64_t row = 1;
  for (int i = 1; i < tensor.rank(); i++) row *= tensor.size(i);
  return reinterpret_cast<uintptr_t>(tensor.view->data) % 16 == 0 &&
         (tensor.rank() == 1 || tensor.size(0) <= 1 || tensor.stride() == row);
}
template <class... P>
bool all_dense(P... tensors) {
  return (dense(tensors) && ...);
}

bool fits(const Call& c) {
  const int64_t m = c.residual.size(1);
  const DType type = c.conv_state.dtype();
  return c.residual.size(0) == 1 && type != DType::f32 && c.in_proj.dtype() == type &&
         c.scan_state.dtype() == DType::f32 && c.A.size(0) == 2 * m &&
         c.A.size(1) == kLayerStates && c.dt_weight.size(1) == m / 16 &&
         c.conv_weight.size(1) == kLayerTaps && (!c.x || dense(c.x)) &&
         (!c.conv_bias || dense(c.conv_bias)) &&
         all_dense(c.residual, c.norm_weight, c.in_proj, c.conv_weight, c.conv_state, c.x_proj,
                   c.dt_weight, c.dt_bias, c.A, c.D, c.scan_state, c.out_proj) &&
         all_dense(c.y, c.sum, c.normed, c.xz, c.u, c.dbc, c.gated);
}

bool apart(const View& a, const View& b) {
  const auto bytes = [](const View& v) {
    int64_t count = size_of(v.dtype);
    for (int i = 0; i < v.rank; i++) count *= v.shape[i];
    return count;
  };
  const char *p = static_cast<const char*>(a.data), *q = static_cast<const char*>(b.data);
  return p + bytes(a) <= q || q + bytes(b) <= p;
}
// Within a launch nothing orders what different layers write.
bool apart(const Call& a, const Call& b) {
  for (const Out& p : {a.y, a.sum, a.normed, a.xz, a.u, a.dbc, a.gated})
    for (const Out& q : {b.y, b.sum, b.normed, b.xz, b.u, b.dbc, b.gated})
      if (!apart(*p.view, *q.view)) return false;
  return true;
}
// Whether `next` is the layer after `last`, of the same step.
bool follows(const Call& last, const Call& next) {
  const auto same = [](const View* a, const View* b) { return a && b && a->data == b->data; };
  return same(last.y.view, next.x.view) && same(last.sum.view, next.residual.view) &&
         same(last.offsets.view, next.offsets.view) && same(last.slots.view, next.slots.view) &&
         last.scan_state.size(0) == next.scan_state.size(0) && last.eps == next.eps &&
         last.in_proj.dtype() == next.in_proj.dtype() &&
         last.residual.size(1) == next.residual.size(1) && next.residual.size(0) == 1;
}

template <class T>
Layer<T> layer_of(const Call& c) {
  Layer<T> l{};
  l.norm = c.norm_weight.data<float>();
  l.in_proj = c.in_proj.data<T>(), l.out_proj = c.out_proj.data<T>();
  l.conv_weight = c.conv_weight.data<float>();
  if (c.conv_bias) l.conv_bias = c.conv_bias.data<float>();
  l.conv_state = c.conv_state.data<T>();
  l.x_proj = c.x_proj.data<T>(), l.dt_weight = c.dt_weight.data<T>();
  l.dt_bias = c.dt_bias.data<float>(), l.A = c.A.data<float>(), l.D = c.D.data<float>();
  l.scan_state = c.scan_state.data<float>();
  l.sum = c.sum.data<float>();
  l.normed = c.normed.data<T>(), l.xz = c.xz.data<T>(), l.u = c.u.data<T>();
  l.dbc = c.dbc.data<T>(), l.gated = c.gated.data<T>(), l.y = c.y.data<T>();
  return l;
}

// Of the device that is current; a thread stays with one, its queue's. No stages: all blocks cannot
// run at once here.
struct Room {
  int stages = 0, bytes = 0;
};
template <class T, int Model>
Room room() {
  using Size = LayerSizes<Model>;
  static_assert(LayerWords<Size>::count <= Exchange::kWords);
  constexpr int kTile = Ring::stage_bytes(Size::columns), kRest = sizeof(LayerMemory<Size>);
  const auto kernel = mamba_layers<T, Model>;
  int device = 0, most = 0, cooperative = 0, at_once = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  Room found{(most - kRest) / kTile, 0};
  if (found.stages > kMostStages) found.stages = kMostStages;
  if (!cooperative || found.stages <= kTilesAhead) return {};
  found.bytes = found.stages * kTile + kRest;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.bytes) ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&at_once, kernel, kLayerThreads + 32,
                                                    static_cast<size_t>(found.bytes)))
    return cudaGetLastError(), Room{};
  return at_once * multiprocessors() >= kLayerBlocks ? found : Room{};
}

template <int Model, class T>
bool step(Stream& stream, Layers<T>& s) {
  static thread_local const Room found = room<T, Model>();
  if (found.stages == 0) return false;
  s.stages = found.stages;
  Grid grid{unsigned{kLayerBlocks}, unsigned{kLayerThreads + 32}};
  grid.shared = static_cast<size_t>(found.bytes), grid.together = true;
  launch(stream.handle, mamba_layers<T, Model>, grid, s);
  return true;
}

template <class T>
bool step_layers(Stream& stream, const Call& first) {
  Layers<T> s{};
  if (first.x) s.x = first.x.data<T>();
  s.residual = first.residual.data<float>();
  s.offsets = first.offsets.data<int32_t>(), s.slots = first.slots.data<int32_t>();
  s.pool = first.scan_state.size(0);
  s.words = stream.exchange->words();
  s.eps = first.eps;
  s.bad_offset = stream.fault("offsets[%lld] is %d, expected %lld: one token of each sequence");
  s.bad_slot = stream.fault("slots[%lld] is %d, expected less than %lld, the rows of state");
  Call calls[kMostLayers] = {first};
  s.layer[0] = layer_of<T>(first);
  s.layers = 1;
  for (; s.layers <= stream.following->count && s.layers < kMostLayers; s.layers++) {
    const Call next = read(stream.following->args[s.layers - 1], mamba_layer_step);
    bool joins = follows(calls[s.layers - 1], next) && fits(next);
    for (int i = 0; i < s.layers; i++) joins = joins && apart(calls[i], next);
    if (!joins) break;
    calls[s.layers] = next;
    s.layer[s.layers] = layer_of<T>(next);
  }
  bool done = false;
  switch (first.residual.size(1)) {
    case 768: done = step<768>(stream, s); break;
    case 1024: done = step<1024>(stream, s); break;
    case 1536: done = step<1536>(stream, s); break;
    case 2048: done = step<2048>(stream, s); break;
    case 2560: done = step<2560>(stream, s); break;
  }
  if (done) stream.following->taken = s.layers - 1;
  return done;
}

}  // namespace

void mamba_layer_step(Stream& stream, Opt x, In residual, In norm_weight, In in_proj, In conv_weight,
                      Opt conv_bias, InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A,
                      In D, InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y,
                      Out sum, Out normed, Out xz, Out u, Out dbc, Out gated) {
  const Call call{x,  residual, norm_weight, in_proj,    conv_weight, conv_bias, conv_state, x_proj,
                  dt_weight, dt_bias, A, D, scan_state, out_proj, offsets, slots,
                  eps, y, sum, normed, xz, u, dbc, gated};
  if (stream.exchange->words() && fits(call)) {
    const bool done = call.in_proj.dtype() == DType::bf16 ? step_layers<__nv_bfloat16>(stream, call)
                                                          : step_layers<__half>(stream, call);
    if (done) return;
  }
  norm_matmul(stream, x, residual, norm_weight, in_proj, Opt{}, eps, xz, sum, normed);
  mamba_step(stream, In{xz.view}, conv_weight, conv_bias, conv_state, x_proj, dt_weight, dt_bias, A, D,
             scan_state, offsets, slots, gated, u, dbc);
  matmul(stream, In{gated.view}, out_proj, Opt{}, y);
}
KERNEL(mamba_layer_step)

}  // namespace ss::cuda
