// A warpgroup's multiplication of bf16 or f16 matrices in shared memory with f32 sums: c[64, N] +=
// a[64, 16] b[N, 16]^T, by machine code of capability 9.0a alone.
//
// Rows of a and b have 64 items, of which a multiplication takes 16. Eight rows of 128 bytes follow one
// another, and piece i of row r, of 16 bytes, lies where piece i ^ r % 8 would: no two rows' pieces share
// banks. A tile of rows begins at a multiple of 1024 bytes.
//
// Lane l of warp w has, of every 8 columns of c, rows 16 w + l / 4 and that + 8 at columns l % 4 * 2 and the
// next.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace ss::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// What names a tile: `at` is its address in shared memory, and 32 k more for its columns from 16 k on.
__device__ __forceinline__ uint64_t tile_at(uint32_t at) {
  constexpr uint32_t kEightRows = 1024 / 16, kSwizzled = 1u << 30;
  uint64_t tile;
  asm("mov.b64 %0, {%1, %2};" : "=l"(tile) : "r"(at >> 4 | 1u << 16), "r"(kEightRows | kSwizzled));
  return tile;
}

// Around multiplications: they run on their own until waited for, and read what was written to shared
// memory before shared_is_written() and a meeting with who wrote it.
__device__ __forceinline__ void shared_is_written() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most Left of those ended are still under way.
template <int Left = 0>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// From a kernel's own number of registers a thread to that of a warpgroup's role.
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

// multiply(c, a, b, T{}) for N of 16, 24, 32, 40, 48, 64, 80 and 96: an instruction names each register.
#define SS_FOUR(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SS_SIXTEEN(i) SS_FOUR(i), SS_FOUR(i + 4), SS_FOUR(i + 8), SS_FOUR(i + 12)
#define SS_NAMES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SS_NAMES_12 SS_NAMES_8 ",%8,%9,%10,%11"
#define SS_NAMES_16 SS_NAMES_12 ",%12,%13,%14,%15"
#define SS_NAMES_20 SS_NAMES_16 ",%16,%17,%18,%19"
#define SS_NAMES_24 SS_NAMES_20 ",%20,%21,%22,%23"
#define SS_NAMES_32 SS_NAMES_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define SS_NAMES_40 SS_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define SS_NAMES_48 SS_NAMES_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define SS_MULTIPLY(n, names, a_name, b_name, T, type, ...)                                        \
  __device__ __forceinline__ void multiply(float (&c)[n / 2], uint64_t a, uint64_t b, T) {         \
    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n       \
                 "k16.f32." type "." type " {" names "}, " a_name ", " b_name ", p, 1, 1, 0, 0; }" \
                 : __VA_ARGS__                                                                     \
                 : "l"(a), "l"(b));                                                                \
  }
#define SS_BOTH(n, names, a, b, ...)                              \
  SS_MULTIPLY(n, names, a, b, __nv_bfloat16, "bf16", __VA_ARGS__) \
  SS_MULTIPLY(n, names, a, b, __half, "f16", __VA_ARGS__)
SS_BOTH(16, SS_NAMES_8, "%8", "%9", SS_FOUR(0), SS_FOUR(4))
SS_BOTH(24, SS_NAMES_12, "%12", "%13", SS_FOUR(0), SS_FOUR(4), SS_FOUR(8))
SS_BOTH(32, SS_NAMES_16, "%16", "%17", SS_SIXTEEN(0))
SS_BOTH(40, SS_NAMES_20, "%20", "%21", SS_SIXTEEN(0), SS_FOUR(16))
SS_BOTH(48, SS_NAMES_24, "%24", "%25", SS_SIXTEEN(0), SS_FOUR(16), SS_FOUR(20))
SS_BOTH(64, SS_NAMES_32, "%32", "%33", SS_SIXTEEN(0), SS_SIXTEEN(16))
SS_BOTH(80, SS_NAMES_40, "%40", "%41", SS_SIXTEEN(0), SS_SIXTEEN(16), SS_FOUR(32), SS_FOUR(36))
SS_BOTH(96, SS_NAMES_48, "%48", "%49", SS_SIXTEEN(0), SS_SIXTEEN(16), SS_SIXTEEN(32))
#undef SS_BOTH
#undef SS_MULTIPLY
#undef SS_NAMES_48
#undef SS_NAMES_40
#undef SS_NAMES_32
#undef SS_NAMES_24
#undef SS_NAMES_20
#undef SS_NAMES_16
#undef SS_NAMES_12
#undef SS_NAMES_8
#undef SS_SIXTEEN
#undef SS_FOUR

#endif

}  // namespace ss::cuda
