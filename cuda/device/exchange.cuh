// Blocks that run at the same time tell each other numbers, through memory. A word holds three of
// 32 bits and the number of the round that they belong to, written and read as one access of 16
// bytes: who reads a word of the round that it waits for has the numbers, so that neither fences nor
// counters are needed, and nothing is ever cleared. A word may be written anew once each of its
// readers is known to have read it.
#pragma once
#include <stdint.h>

namespace ss::cuda {

struct alignas(16) Word {
  uint32_t bits[3], round;
};

__device__ __forceinline__ void publish(Word* to, uint32_t a, uint32_t b, uint32_t c,
                                        uint32_t round) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{.reg .b64 lo, hi; .reg .b128 w;\n"
      "mov.b64 lo, {%1, %2}; mov.b64 hi, {%3, %4}; mov.b128 w, {lo, hi};\n"
      "st.relaxed.gpu.global.b128 [%0], w;}" ::"l"(to),
      "r"(a), "r"(b), "r"(c), "r"(round)
      : "memory");
#endif
}

// Reads it, unless it is of that round already.
__device__ __forceinline__ void look(Word& w, const Word* at, uint32_t round) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{.reg .pred p; .reg .b64 lo, hi; .reg .b128 w;\n"
      "setp.ne.u32 p, %3, %5;\n"
      "mov.b64 lo, {%0, %1}; mov.b64 hi, {%2, %3}; mov.b128 w, {lo, hi};\n"
      "@p ld.relaxed.gpu.global.b128 w, [%4];\n"
      "mov.b128 {lo, hi}, w; mov.b64 {%0, %1}, lo; mov.b64 {%2, %3}, hi;}"
      : "+r"(w.bits[0]), "+r"(w.bits[1]), "+r"(w.bits[2]), "+r"(w.round)
      : "l"(at), "r"(round)
      : "memory");
#endif
}

// Until the words from[0], from[stride], .., `count` of at most N for a thread, are of that round: by
// a whole warp, whose lanes stay together. Each asks for all of its words at once, over and over: one
// after the other, and the lanes apart, they took three times as long.
template <int N>
__device__ __forceinline__ void await(Word (&w)[N], const Word* from, int stride, int count,
                                      uint32_t round) {
#pragma unroll
  for (int i = 0; i < N; i++) w[i] = {{}, i < count ? round - 1 : round};
  bool all = false;
  while (!__all_sync(0xffffffffu, all)) {
    all = true;
#pragma unroll
    for (int i = 0; i < N; i++) look(w[i], from + i * stride, round);
#pragma unroll
    for (int i = 0; i < N; i++) all = all && w[i].round == round;
  }
}

}  // namespace ss::cuda
