// A decode step's layers, of the published Mamba sizes: 130m, 370m, 790m, 1.4b, 2.8b.
#include "device/mamba_layers.cuh"
#include "layer_room.h"
#include "layer_steps.h"

namespace ss::cuda {
namespace {

template <int Model, class T>
bool launch_model(Stream& stream, Layers<T>& s) {
  using Size = LayerSizes<Model>;
  static_assert(LayerWords<Size>::count <= Exchange::kWords);
  const auto kernel = mamba_layers<T, Model>;
  // A thread stays with one device, its queue's.
  static thread_local const LayerRoom room =
      layer_room(kernel, Ring::stage_bytes(Size::columns), sizeof(LayerMemory<Size>));
  return launch_together(stream, kernel, room, s);
}

}  // namespace

template <class T>
bool launch_mamba_layers(Stream& stream, int64_t m, Layers<T>& s) {
  switch (m) {
    case 768: return launch_model<768>(stream, s);
    case 1024: return launch_model<1024>(stream, s);
    case 1536: return launch_model<1536>(stream, s);
    case 2048: return launch_model<2048>(stream, s);
    case 2560: return launch_model<2560>(stream, s);
  }
  return false;
}
template bool launch_mamba_layers(Stream&, int64_t, Layers<__nv_bfloat16>&);
template bool launch_mamba_layers(Stream&, int64_t, Layers<__half>&);

}  // namespace ss::cuda
