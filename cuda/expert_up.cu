// x W^T of each place's row, y = f(gate) up of it, and y[token] = the weighed rows that come out: what stands on
// either side of a layer's experts, for many tokens. Both halves: expert_tile.cuh, tiles by the rows
// that an expert has on average; any types: expert_matmul, and its product in memory between.
#include "dispatch.cuh"
#include "expert_tile.cuh"
#include "scratch.h"
#include "stream.h"

namespace ss::cuda {

void expert_matmul(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y);
void expert_combine(Stream& s, In x, In place, In weights, Out y);
void activate(Stream& s, In x, Opt factor, int64_t kind, Out y);

namespace {

// Rows of an expert, on average, up to which a tile's height is best.
constexpr int64_t kRows16 = 12, kRows32 = 48, kRows64 = 160;
constexpr int64_t kMostTiles = 65535;

template <Step kStep, class T>
void launch_fitting(cudaStream_t stream, const Grouped& g) {
  if (g.places <= kRows16 * g.e) return launch_tile<Shape<16, 64, 1, 4, 6>, kStep, T>(stream, g);
  if (g.places <= kRows32 * g.e) return launch_tile<Shape<32, 64, 1, 4, 4>, kStep, T>(stream, g);
  if (g.places <= kRows64 * g.e) return launch_tile<Shape<64, 64, 2, 2, 4>, kStep, T>(stream, g);
  launch_tile<Shape<128, 128, 2, 2, 2>, kStep, T>(stream, g);
}

// False where the tiles do not fit the types or sizes.
template <class F>
bool on_tensor_cores(const Grouped& g, In x, In weight, F&& launch_as) {
  if (x.dtype() != weight.dtype() || g.d % 8 != 0 || g.h % 8 != 0 || g.e == 0) return false;
  if (g.places / 16 + g.e > kMostTiles) return false;
  const auto with = [&](auto type) {
    using T = decltype(type);
    if (!packs<T>(x, 8) || !packs<T>(weight, 8)) return false;
    launch_as(type);
    return true;
  };
  if (x.dtype() == DType::bf16) return with(__nv_bfloat16{});
  return x.dtype() == DType::f16 && with(__half{});
}

View matrix(void* data, int64_t rows, int64_t columns, int64_t stride, DType type) {
  return {data, {rows, columns}, stride, 2, type};
}

Grouped grouped(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, int64_t h, Out y) {
  Grouped g{};
  g.x = x.view->data, g.w = weight.view->data, g.y = y.view->data;
  if (bias) g.bias = bias.data<float>(), g.bias_stride = bias.stride();
  g.order = order.data<int32_t>(), g.offsets = offsets.data<int32_t>();
  g.t = x.size(0), g.e = weight.size(0), g.n = weight.size(1), g.d = weight.size(2), g.h = h;
  g.places = order.size(0), g.k = k;
  g.x_stride = x.stride(), g.w_stride = weight.stride();
  g.fault = s.fault("order[%lld] is %d, expected 0 to %lld");
  return g;
}

}  // namespace

// What expert_matmul does, of many places. False: the tiles do not fit the types or sizes.
bool expert_tiles(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y) {
  const Grouped g = grouped(s, x, weight, bias, order, offsets, k, weight.size(1), y);
  return y.dtype() == x.dtype() && on_tensor_cores(g, x, weight, [&](auto type) {
           launch_fitting<Step::plain, decltype(type)>(s.handle, g);
         });
}

// [t, d], [e, n, d], [e, n]?, [a], [e + 1] -> [a, h]
void expert_up(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, int64_t kind,
               int64_t h, Out y) {
  Grouped g = grouped(s, x, weight, bias, order, offsets, k, h, y);
  g.kind = static_cast<int>(kind);
  const bool gated = g.n == 2 * h;
  if (g.places == 0 || h == 0) return;
  const bool done = on_tensor_cores(g, x, weight, [&](auto type) {
    using T = decltype(type);
    if (gated)
      launch_fitting<Step::gated_up, T>(s.handle, g);
    else
      launch_fitting<Step::up, T>(s.handle, g);
  });
  if (done) return;
  const int64_t size = size_of(x.dtype());
  const Scratch product(s, gated ? g.places * g.n * size : 16);
  if (!product.floats()) return;
  void* to = gated ? static_cast<void*>(product.floats()) : y.view->data;
  const View both = matrix(to, g.places, g.n, g.n, x.dtype());
  expert_matmul(s, x, weight, bias, order, offsets, k, Out{&both});
  const View gate = matrix(to, g.places, h, g.n, x.dtype());
  const View up = matrix(static_cast<char*>(to) + h * size, g.places, h, g.n, x.dtype());
  activate(s, In{&gate}, gated ? Opt{&up} : Opt{}, kind, y);
}
KERNEL(expert_up)

// [a, d], [e, n, d], [e, n]?, [a], [a], [e + 1], [t, k] -> [t, n]
void expert_down(Stream& s, In x, In weight, Opt bias, In order, In place, In offsets, In weights,
                 Out y) {
  Grouped g = grouped(s, x, weight, bias, order, offsets, 1, weight.size(1), y);
  g.t = weights.size(0);
  g.place = place.data<int32_t>(), g.weights = weights.data<float>(), g.weights_stride = weights.stride();
  if (g.t == 0 || g.n == 0) return;
  const bool one = weights.size(1) == 1;
  const bool done = one && on_tensor_cores(g, x, weight, [&](auto type) {
    using T = decltype(type);
    launch_fitting<Step::down, T>(s.handle, g);
  });
  if (done) return;
  const Scratch product(s, g.places * g.n * size_of(x.dtype()) + 16);
  if (!product.floats()) return;
  const View rows = matrix(product.floats(), g.places, g.n, g.n, x.dtype());
  expert_matmul(s, x, weight, bias, order, offsets, 0, Out{&rows});
  expert_combine(s, In{&rows}, place, weights, y);
}
KERNEL(expert_down)

}  // namespace ss::cuda
