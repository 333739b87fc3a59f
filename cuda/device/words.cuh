// N neighbouring items kept as the 32-bit words they came in, and unpacked one by one. As an array
// of 16-bit items the compiler takes them apart and together again at every branch.
#pragma once
#include <stdint.h>

#include "pack.cuh"

namespace ss::cuda {

template <class T, int N>
struct Words {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T)), kCount = (kBytes + 3) / 4;
  uint32_t word[kCount];

  // p is aligned to 16 bytes or, where they are fewer, to all of them.
  __device__ __forceinline__ static Words load(const T* p) {
    Words out;
    if constexpr (kBytes >= 16) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const uint4 some = reinterpret_cast<const uint4*>(p)[i / 4];
        out.word[i] = some.x, out.word[i + 1] = some.y;
        out.word[i + 2] = some.z, out.word[i + 3] = some.w;
      }
    } else if constexpr (kBytes == 8) {
      const uint2 some = *reinterpret_cast<const uint2*>(p);
      out.word[0] = some.x, out.word[1] = some.y;
    } else if constexpr (kBytes == 4) {
      out.word[0] = *reinterpret_cast<const uint32_t*>(p);
    } else {
      out.word[0] = *reinterpret_cast<const uint16_t*>(p);
    }
    return out;
  }
  // The first `count` of them, then zeros; any alignment.
  __device__ static Words load_some(const T* p, int count) {
    Words out{};
#pragma unroll
    for (int k = 0; k < N; k++) {
      if (k >= count) break;
      if constexpr (sizeof(T) == 4)
        out.word[k] = reinterpret_cast<const uint32_t*>(p)[k];
      else
        out.word[k / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(p)[k]) << k % 2 * 16;
    }
    return out;
  }
  __device__ __forceinline__ float operator[](int k) const { return unpack(k, T{}); }

 private:
  __device__ float unpack(int k, float) const { return __uint_as_float(word[k]); }
  __device__ float unpack(int k, __nv_bfloat16) const {
    return __uint_as_float(k % 2 ? word[k / 2] & 0xffff0000u : word[k / 2] << 16);
  }
  __device__ float unpack(int k, __half) const {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(word[k / 2] >> k % 2 * 16)));
  }
};

}  // namespace ss::cuda
