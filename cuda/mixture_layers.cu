// A decode step's layers, of MoE-Mamba 25M and 100M and of BlackMamba 1.5B and 2.8B; Mamba layers
// alone, too, of models as wide.
#include "device/mixture_layers.cuh"
#include "layer_room.h"
#include "layer_steps.h"

namespace ss::cuda {
namespace {

template <int Model, int Hidden, class T>
bool launch_model(Stream& stream, mixture::Layers<T>& s) {
  using Size = mixture::LayerSizes<Model, Hidden>;
  static_assert(mixture::LayerWords<Size>::count <= Exchange::kWords);
  const auto kernel = mixture::run_layers<T, Size>;
  // A thread stays with one device, its queue's.
  static thread_local const LayerRoom room =
      layer_room(kernel, Ring::stage_bytes(Size::columns), sizeof(mixture::LayerMemory<Size>));
  return launch_together(stream, kernel, room, s);
}

}  // namespace

template <class T>
bool launch_mixture_layers(Stream& stream, int64_t m, int64_t h, mixture::Layers<T>& s) {
  const auto is = [&](int64_t model, int64_t hidden) { return m == model && (h == 0 || h == hidden); };
  if (is(512, 1536)) return launch_model<512, 1536>(stream, s);
  if (is(768, 2304)) return launch_model<768, 2304>(stream, s);
  if (is(1152, 3072)) return launch_model<1152, 3072>(stream, s);
  return is(1472, 3872) && launch_model<1472, 3872>(stream, s);
}
template bool launch_mixture_layers(Stream&, int64_t, int64_t, mixture::Layers<__nv_bfloat16>&);
template bool launch_mixture_layers(Stream&, int64_t, int64_t, mixture::Layers<__half>&);

}  // namespace ss::cuda
