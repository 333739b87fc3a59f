// What a CPU kernel is given: threads to spread over, scratch memory, and a way to fail.
#pragma once
#include <stddef.h>

#include "../tensor.h"

namespace ss {

struct Stream {
  // Calls body(begin, end, worker) over disjoint pieces of [0, n), each a multiple of `grain` long
  // (but the last), on all threads; returns when all are done. worker < threads().
  template <class Body>
  SS_INLINE void parallel(int64_t n, int64_t grain, Body&& body) {
    using B = typename RemoveRef<Body>::type;
    parallel_pieces(
        n, grain,
        [](void* ctx, int64_t b, int64_t e, int worker) { (*static_cast<B*>(ctx))(b, e, worker); },
        const_cast<void*>(static_cast<const volatile void*>(&body)));
  }
  int threads() const;
  // 64-byte aligned memory of this worker's own, kept and grown between calls; contents undefined.
  // Valid until the same worker asks again. Asking for worker 0 outside of parallel() is fine.
  void* scratch(int worker, size_t bytes);
  // Marks this op as failed: the next read rejects with "<op>: <message>". The op returns as usual.
  void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));

  struct Impl;
  Impl* impl;

 private:
  template <class T>
  struct RemoveRef {
    using type = T;
  };
  template <class T>
  struct RemoveRef<T&> {
    using type = T;
  };
  using Piece = void (*)(void* ctx, int64_t begin, int64_t end, int worker);
  void parallel_pieces(int64_t n, int64_t grain, Piece piece, void* ctx);
};

}  // namespace ss
