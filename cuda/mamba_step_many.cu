// mamba_step for 17 to 256 sequences of a published model, in bf16 or f16 with states in the same or in f32:
// how device/step_shares.cuh and step_states.cuh are launched.
#include "mamba_step_many.h"

#include <type_traits>

#include "card.h"
#include "device/step_shares.cuh"
#include "device/step_states.cuh"
#include "launch.cuh"

namespace ss::cuda {
namespace {

constexpr int kLeast = 17, kMost = 256;  // sequences

template <class... P>
bool allow_shared(void (*kernel)(P...), int bytes) {
  if (bytes <= shared_bytes() &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess)
    return true;
  cudaGetLastError();
  return false;
}

// False if its blocks do not fit.
template <int Warps, int Tiles, class T>
bool launch_shares(Stream& stream, const Step<T>& s, float* shares) {
  constexpr int kChannels = StateSizes<Warps>::share_channels;
  using Memory = ShareMemory<T, kChannels, Tiles>;
  const int bytes = Memory::bytes(s.k), tiles = (s.count + Memory::rows - 1) / Memory::rows;
  const auto kernel = step_shares<T, kChannels, Tiles>;
  if (!allow_shared(kernel, bytes)) return false;
  launch(stream.handle, kernel,
         Grid{static_cast<unsigned>(tiles * (s.d / kChannels)), unsigned{Memory::threads},
              static_cast<size_t>(bytes), unsigned{kShareBlocks}},
         s, shares);
  return true;
}

template <class S, int Warps, class T>
bool launch_step(Stream& stream, const Step<T>& s) {
  using Size = StateSizes<Warps>;
  // Of the ring: what fits, and of the narrowest model what lets more blocks run beside each other.
  constexpr int kDepth = sizeof(S) == 4 && (Warps == 20 || Warps == 6) ? 2 : 4;
  // Into which the sequences are dealt, so that all blocks run at once: of a narrow model several on a
  // multiprocessor.
  constexpr int kGroups = Warps > 8 ? 8 : Warps == 8 ? 16 : 32;
  // Of 16 sequences that a block of shares has, from 65 and from 129 on.
  constexpr int kMany = Warps > 6 ? 2 : 1, kMost16 = Warps > 8 ? 3 : kMany;
  const int each = (s.count + kGroups - 1) / kGroups;
  const int rows = (each + kStateRows - 1) / kStateRows * kStateRows;
  const int bytes = StatesMemory<T, S, Warps>::bytes(rows, kDepth);
  const auto kernel = step_states<T, S, Warps, kDepth>;
  float* const shares = stream.exchange->shares();
  static_assert(Size::shares * kMost * Size::k <= Exchange::kShares);
  if (!shares || !allow_shared(kernel, bytes) ||
      !(s.count > 128  ? launch_shares<Warps, kMost16>(stream, s, shares)
        : s.count > 64 ? launch_shares<Warps, kMany>(stream, s, shares)
                       : launch_shares<Warps, 1>(stream, s, shares)))
    return false;
  launch(stream.handle, kernel,
         Grid{static_cast<unsigned>((s.count + rows - 1) / rows * kStateBlocks), unsigned{Size::threads},
              static_cast<size_t>(bytes)},
         s, static_cast<const float*>(shares), rows);
  return true;
}

template <class S, class T>
bool launch_width(Stream& stream, const Step<T>& s) {
  switch (s.d) {
    case 256 * 6: return launch_step<S, 6>(stream, s);
    case 256 * 8: return launch_step<S, 8>(stream, s);
    case 256 * 12: return launch_step<S, 12>(stream, s);
    case 256 * 16: return launch_step<S, 16>(stream, s);
    case 256 * 20: return launch_step<S, 20>(stream, s);
    default: return false;
  }
}

}  // namespace

template <class T>
bool step_many_sequences(Stream& stream, const Step<T>& s, DType state) {
  const auto aligned = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!is_hopper() || s.count < kLeast || s.count > kMost || s.r * 32 != s.d || s.k != s.r + 2 * kStates ||
      !aligned(s.dt_bias) || !aligned(s.D))
    return false;
  if (state == DType::f32) return launch_width<float>(stream, s);
  return state == (std::is_same_v<T, __half> ? DType::f16 : DType::bf16) && launch_width<T>(stream, s);
}
template bool step_many_sequences(Stream&, const Step<__nv_bfloat16>&, DType);
template bool step_many_sequences(Stream&, const Step<__half>&, DType);

}  // namespace ss::cuda
