// y = weight[ids]: rows of the table, converted to the type of y. One block a token; t*d*(sizeof(W)
// + sizeof(Y)) bytes move.
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

// A row whose id is out of range becomes zero, and the fault is reported.
template <int N, class W, class Y>
__global__ void take_embeddings(const int32_t* ids, const W* weight, int64_t w_stride,
                                int64_t vocabulary, int64_t tokens, int64_t d, Y* y,
                                int64_t y_stride, Fault* fault) {
  let_next_start();
  wait_for_previous();
  for (int64_t i = blockIdx.x; i < tokens; i += gridDim.x) {
    const int32_t id = ids[i];
    const bool known = id >= 0 && id < vocabulary;
    if (!known && threadIdx.x == 0) fault->report(i, id, vocabulary - 1);
    for (int64_t j = int64_t{threadIdx.x} * N; j < d; j += int64_t{blockDim.x} * N) {
      const Pack<N> v = known ? Pack<N>::load(weight + id * w_stride + j) : Pack<N>{};
      v.store(y + i * y_stride + j);
    }
  }
}

template <int N, class W, class Y>
void launch_rows(Stream& s, In ids, In weight, Out y) {
  const int64_t tokens = ids.size(0), d = weight.size(1), packs = (d + N - 1) / N;
  if (tokens == 0 || d == 0) return;
  const unsigned threads = packs >= 256 ? 256 : static_cast<unsigned>((packs + 31) / 32 * 32);
  const unsigned blocks = static_cast<unsigned>(tokens < INT32_MAX ? tokens : INT32_MAX);
  launch(s.handle, take_embeddings<N, W, Y>, {blocks, threads}, ids.data<int32_t>(),
         weight.data<W>(), weight.stride(), weight.size(0), tokens, d, y.data<Y>(), y.stride(),
         s.fault("ids[%lld] is %d, expected 0 to %lld"));
}

}  // namespace

void embedding(Stream& s, In ids, In weight, Out y) {  // [t], [v, d] -> [t, d]
  with_float(weight.dtype(), [&](auto wt) {
    with_float(y.dtype(), [&](auto yt) {
      using W = decltype(wt);
      using Y = decltype(yt);
      constexpr int wide = 16 / (sizeof(W) > sizeof(Y) ? sizeof(W) : sizeof(Y));
      if (weight.size(1) % wide == 0 && packs<W>(weight, wide) && packs<Y>(y, wide))
        launch_rows<wide, W, Y>(s, ids, weight, y);
      else
        launch_rows<1, W, Y>(s, ids, weight, y);
    });
  });
}
KERNEL(embedding)

}  // namespace ss::cuda
