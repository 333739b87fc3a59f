// What a relay's warp (scan_relay.cuh) moves: its inputs, 8 rows of 16 bytes of each, dt among its threads,
// the state to the next warp.
#pragma once
#include "cluster.cuh"
#include "mma.cuh"
#include "scan_plan.cuh"
#include "turnstile.cuh"

namespace ss::cuda {

constexpr int kRelayStages = 4, kRelayStage = 1024;  // bytes; of two copies of 16 a thread
constexpr int kRelayFirst = 2;  // chunks asked for at once: more would be in the way of other warps' first ones
constexpr int kRelayRuns = 4;  // whose parts lie in shared memory: a warp may be two ahead of another

// State number m of a thread's four.
__device__ __forceinline__ int relay_state(int m) { return m / 2 * 8 + threadIdx.x % 4 * 2 + m % 2; }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void load_shared(float* to, uint32_t at) {
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t at, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]),
               "f"(v[3])
               : "memory");
}
// The warp's 512 bytes of a state, into another block's shared memory: they open its turnstile.
__device__ __forceinline__ void send_away(uint32_t to, const float (&v)[4], uint32_t ready) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(ready)
      : "memory");
#endif
}
__device__ __forceinline__ void expect_bytes(uint32_t ready, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared.b64 t, [%0], %1; }" ::"r"(ready), "r"(bytes)
               : "memory");
#endif
}
// Turnstile::arrive and pass, of one in an array that a loop walks through.
__device__ __forceinline__ void arrive_at(uint32_t turnstile) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(turnstile) : "memory");
}
__device__ __forceinline__ void pass_at(uint32_t turnstile, uint32_t turn) {
#if __CUDA_ARCH__ >= 900
  uint32_t open = 0;
  while (!open)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(open)
                 : "r"(turnstile), "r"(turn & 1)
                 : "memory");
#endif
}
// Rows further, of `row` bytes each, in one instruction.
__device__ __forceinline__ char* further(char* at, uint32_t rows, uint32_t row) {
  char* to;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(to) : "r"(rows), "r"(row), "l"(at));
  return to;
}
// To global memory: the first, if `left` tokens are more than 0, and the second, if more than 1.
template <class T>
__device__ __forceinline__ void store_two(char* first, char* second, const T (&items)[2], int left) {
  const auto bits = [&](int j) { return *reinterpret_cast<const uint16_t*>(&items[j]); };
  asm volatile(
      "{ .reg .pred p, r; setp.gt.s32 p, %4, 0; setp.gt.s32 r, %4, 1; @p st.global.b16 [%0], %2;"
      " @r st.global.b16 [%1], %3; }" ::"l"(first),
      "l"(second), "h"(bits(0)), "h"(bits(1)), "r"(left)
      : "memory");
}

__device__ __forceinline__ float half_of(uint32_t pair, int k, __nv_bfloat16) {
  return __uint_as_float(k ? pair & 0xffff0000u : pair << 16);
}
__device__ __forceinline__ float half_of(uint32_t pair, int k, __half) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(k ? pair >> 16 : pair)));
}

// Pairs of a chunk, with g = lane / 4 and q = lane % 4: u and z of channel g at tokens 2q and 2q + 1, B
// of states g and g + 8 at the same tokens, C of token g at states 2q, 2q + 1 and at 8 more.
struct RelayItems {
  uint32_t u, z, B[2], C[2];
};

// A warp's chunks, one every Step tokens, kRelayStages - 1 of them on their way. A stage: rows of 16 bytes,
// eight tokens of delta, u, B, B's second half, C, C's second half, z, and z again.
template <class T, int Step>
class RelayCopies {
  const uint32_t mine;  // this thread's row of the first stage
  uint32_t stage = 0;   // where the next chunk lies that is taken
  int left;             // tokens from this thread's on, of the chunk that is asked for next
  char *upper, *lower;
  uint32_t upper_row, lower_row;

 public:
  __device__ RelayCopies(const Scan<T>& s, int64_t begin, int64_t first, int start, int tokens, uint32_t stages)
      : mine(stages + threadIdx.x % 32 * 16), left(tokens - start - static_cast<int>(threadIdx.x % 8)) {
    const int which = threadIdx.x % 32 / 8;
    const int64_t at = begin + start + threadIdx.x % 8, factors = first / s.group_channels * s.n;
    const auto row = [&](const void* x, int64_t stride, int64_t column) {
      return const_cast<char*>(reinterpret_cast<const char*>(static_cast<const T*>(x) + at * stride + column));
    };
    const int64_t B_column = factors + (which - 2) * 8, C_column = factors + which * 8;
    upper = which == 0   ? row(s.delta, s.delta_stride, first)
            : which == 1 ? row(s.u, s.u_stride, first)
                         : row(s.B, s.B_stride, B_column);
    upper_row = static_cast<uint32_t>(which == 0 ? s.delta_stride : which == 1 ? s.u_stride : s.B_stride) * 2;
    lower = which < 2 ? row(s.C, s.C_stride, C_column) : row(s.z, s.z_stride, first);
    lower_row = static_cast<uint32_t>(which < 2 ? s.C_stride : s.z_stride) * 2;
    for (int i = 0; i < kRelayFirst; i++) ask(0);
  }

  // The next chunk, into the stage that all have taken last. Beyond the tokens: zeros.
  __device__ __forceinline__ void ask(uint32_t nothing) {
    const uint32_t to = mine + stage;
    const int bytes = left > 0 ? 16 : 0;
    copy_part(to, upper, bytes);
    copy_part(to + kRelayStage / 2, lower, bytes);
    end_copy_group();
    stage = (stage + kRelayStage) % (kRelayStages * kRelayStage);
    left -= Step, upper = further(upper, Step | nothing, upper_row), lower = further(lower, Step | nothing, lower_row);
  }

  template <bool First>
  __device__ __forceinline__ void take(uint32_t& delta, RelayItems& items) {
    wait_copy_groups<(First ? kRelayFirst : kRelayStages) - 1>();
    __syncwarp();
    const uint32_t at = mine + (First ? 0 : stage);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(delta), "=r"(items.u), "=r"(items.B[0]), "=r"(items.B[1])
                 : "r"(at)
                 : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(items.C[0]), "=r"(items.C[1])
                 : "r"(at + kRelayStage / 2)
                 : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(items.z)
                 : "r"(at + kRelayStage / 4 * 3)
                 : "memory");
    if (First)
      for (int i = kRelayFirst; i < kRelayStages; i++) ask(0);
  }

 private:
  __device__ static void copy_part(uint32_t to, const char* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
};

// dt of 8 tokens by 8 channels: each thread puts two of its channel's and gets all.
class RelayTimes {
  uint32_t to, from;

 public:
  __device__ explicit RelayTimes(uint32_t at) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, far = g / 4;  // far: halves swapped, for banks
    to = at + g * 32 + (q / 2 ^ far) * 16 + q % 2 * 8;
    from = at + g * 32 + far * 16;
  }
  __device__ __forceinline__ void put(const float (&dt)[2]) const {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(dt[0]), "f"(dt[1]) : "memory");
  }
  __device__ __forceinline__ void get(float (&dt)[8]) const {
    load_shared(dt, from);
    load_shared(dt + 4, from ^ 16);
  }
};

}  // namespace ss::cuda
