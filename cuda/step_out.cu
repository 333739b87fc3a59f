// The out_proj of a step of many sequences: which sizes device/step_out.cuh takes, and how it is launched.
#include "device/step_out.cuh"

#include "card.h"
#include "dispatch.cuh"
#include "launch.cuh"
#include "step_kernels.h"
#include "tensor_map.h"

namespace ss::cuda {

#ifdef SS_HOPPER  // built with machine code of 9.0a
namespace {

constexpr int64_t kFewest = 17, kMost = 256;  // rows
constexpr int64_t kBlocks = 128;  // in clusters of two, of the 132 that run at once on a whole card

template <int Columns, class T>
bool launch_out_proj(cudaStream_t stream, OutProj& p, In x, In weight) {
  using P = OutProjPlan<Columns>;
  const auto kernel = step_out_proj<T, Columns>;
  // A thread stays with one device, its queue's.
  static thread_local const bool fits =
      !cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  const int64_t n = weight.size(0), k = weight.size(1);
  if (!fits || !tile_map(p.x, x.view->data, x.dtype(), p.rows, k, P::kRows) ||
      !tile_map(p.w, weight.view->data, x.dtype(), n, k, Columns))
    return cudaGetLastError(), false;
  const dim3 blocks(static_cast<unsigned>(2 * n / Columns), static_cast<unsigned>((p.rows + P::kRows - 1) / P::kRows));
  launch(stream, kernel, Grid{blocks, P::kThreads, P::kBytes, 2}, p);
  return true;
}

// The fewest rows of W a block of which so many blocks are enough.
template <class T>
bool launch_columns(cudaStream_t stream, OutProj& p, In x, In weight) {
  const int64_t n = weight.size(0), tiles = (p.rows + 63) / 64;
  const auto fits = [&](int64_t columns) { return n % columns == 0 && 2 * n / columns * tiles <= kBlocks; };
  if (fits(16)) return launch_out_proj<16, T>(stream, p, x, weight);
  if (fits(24)) return launch_out_proj<24, T>(stream, p, x, weight);
  if (fits(32)) return launch_out_proj<32, T>(stream, p, x, weight);
  if (fits(40)) return launch_out_proj<40, T>(stream, p, x, weight);
  if (fits(48)) return launch_out_proj<48, T>(stream, p, x, weight);
  return false;  // a wider model's tiles are larger, and cuBLASLt's faster
}

}  // namespace
#endif

bool step_out(Stream& stream, In x, In weight, Out y, bool ahead) {
#ifdef SS_HOPPER
  const int64_t rows = x.size(0), k = x.size(1);
  constexpr int kDepth = 2 * OutProjPlan<16>::kDepth;  // of both blocks
  static thread_local const bool hopper = is_hopper();
  if (!hopper || rows < kFewest || rows > kMost || k == 0 || k % kDepth != 0 || k > INT32_MAX ||
      x.dtype() == DType::f32 || weight.dtype() != x.dtype() || y.dtype() != x.dtype() || x.stride() != k ||
      weight.stride() != k)
    return false;
  OutProj p{};
  p.y = y.view->data, p.y_stride = y.stride(), p.rows = static_cast<int>(rows);
  p.stages = static_cast<int>(k / kDepth), p.ahead = ahead;
  bool done = false;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      done = packs<T>(y, 4) && launch_columns<T>(stream.handle, p, x, weight);
  });
  return done;
#else
  return false;
#endif
}

}  // namespace ss::cuda
