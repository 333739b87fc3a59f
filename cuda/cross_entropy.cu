// loss = log of the sum of exp(logits) - logits[label]; 0 where the label is -100. One block a row,
// which is read from memory once and from the cache again: 4*t*v bytes move.
#include "device/fault.cuh"
#include "device/reduce.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int32_t kIgnored = -100;

__global__ void __launch_bounds__(512)
    row_losses(const float* logits, int64_t stride, const int32_t* labels, int64_t t, int64_t v,
               float* loss, Fault* fault) {
  for (int64_t i = blockIdx.x; i < t; i += gridDim.x) {
    const int32_t label = labels[i];
    if (label < 0 || label >= v) {  // the same for the whole block
      if (threadIdx.x == 0) {
        if (label != kIgnored) fault->report(i, label, v);
        loss[i] = 0;
      }
      continue;
    }
    const float* row = logits + i * stride;
    float most = -INFINITY;
    for (int64_t j = threadIdx.x; j < v; j += blockDim.x) most = fmaxf(most, row[j]);
    const float largest = block_max(most);
    double total = 0;
    for (int64_t j = threadIdx.x; j < v; j += blockDim.x)
      total += static_cast<double>(expf(row[j] - largest));
    total = block_sum(total);
    if (threadIdx.x == 0) loss[i] = static_cast<float>(log(total) + largest - row[label]);
  }
}

}  // namespace

void cross_entropy(Stream& s, In logits, In labels, Out loss) {  // f32[t, v], i32[t] -> f32[t]
  const int64_t t = logits.size(0), v = logits.size(1);
  if (t == 0) return;
  const unsigned blocks = static_cast<unsigned>(t < INT32_MAX ? t : INT32_MAX);
  row_losses<<<blocks, 512, 0, s.handle>>>(
      logits.data<float>(), logits.stride(), labels.data<int32_t>(), t, v, loss.data<float>(),
      s.fault("labels[%lld] is %d, expected -100 or at least 0 and less than %lld"));
}
KERNEL(cross_entropy)

}  // namespace ss::cuda
