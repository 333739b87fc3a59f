// loss = log of the sum of exp(logits) - logits[label], and its gradient with respect to the logits,
// factor (softmax - 1 at the label); both 0 where the label is -100. One block a row, which is read
// once for the maximum and the sum together, and again for the gradient: from shared memory, if two
// rows fit on a multiprocessor. In the cache those of all blocks would not.
#include "card.h"
#include "device/fault.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int32_t kIgnored = -100;
constexpr int kThreads = 512;
constexpr int64_t kReserved = 2 << 10;  // bytes of shared memory that a block takes besides a row

struct Row {
  float largest;
  double total;  // of exp(logit - largest)
};

// Threads keep a maximum and a sum of their own; the sums meet in f64.
template <int N, class T>
__device__ Row sum_row(const T* row, int64_t v) {
  float most = -INFINITY, sum = 0;
  for (int64_t j = int64_t{threadIdx.x} * N; j < v; j += kThreads * N) {
    const Pack<N> some = Pack<N>::load(row + j);
    float top = some.item[0];
#pragma unroll
    for (int k = 1; k < N; k++) top = fmaxf(top, some.item[k]);
    if (top > most) {
      sum *= expf(most - top);
      most = top;
    }
#pragma unroll
    for (int k = 0; k < N; k++) sum += expf(some.item[k] - most);
  }
  const float largest = block_max(most);
  const double own = sum > 0 ? static_cast<double>(sum) * exp(static_cast<double>(most) - largest) : 0;
  return {largest, block_sum(sum == sum ? own : static_cast<double>(sum))};
}

template <class T>
struct Rows {
  const T* logits;
  int64_t stride;
  const int32_t* labels;
  int64_t t, v;
  float* loss;            // [t], or null
  T* gradient;            // [t, v], or null; may be the logits
  int64_t gradient_stride;
  const float* factor;    // [t], or one for all
  bool one_factor;
  Fault* fault;
};

// Held: the row is copied to shared memory first. The block's threads read what they copied themselves.
template <int N, bool Held, class T>
__global__ void __launch_bounds__(kThreads, 2) cross_rows(const Rows<T> r) {
  extern __shared__ __align__(16) unsigned char memory[];
  for (int64_t i = blockIdx.x; i < r.t; i += gridDim.x) {
    const int32_t label = r.labels[i];
    T* to = r.gradient ? r.gradient + i * r.gradient_stride : nullptr;
    if (label < 0 || label >= r.v) {  // the same for the whole block
      if (threadIdx.x == 0) {
        if (label != kIgnored) r.fault->report(i, label, r.v);
        if (r.loss) r.loss[i] = 0;
      }
      if (to)
        for (int64_t j = int64_t{threadIdx.x} * N; j < r.v; j += kThreads * N) Pack<N>{}.store(to + j);
      continue;
    }
    const T* row = r.logits + i * r.stride;
    const float at_label = to_float(row[label]);
    if constexpr (Held) {
      T* held = reinterpret_cast<T*>(memory);
      for (int64_t j = int64_t{threadIdx.x} * N; j < r.v; j += kThreads * N) copy_async(held + j, row + j, true);
      end_copy_group();
      wait_copy_groups<0>();
      row = held;
    }
    const Row sums = sum_row<N>(row, r.v);
    if (r.loss && threadIdx.x == 0)
      r.loss[i] = static_cast<float>(log(sums.total) + sums.largest - at_label);
    if (!to) continue;
    const float factor = r.factor[r.one_factor ? 0 : i];
    const float scale = static_cast<float>(factor / sums.total);
    const double p = exp(static_cast<double>(at_label) - sums.largest) / sums.total;
    for (int64_t j = int64_t{threadIdx.x} * N; j < r.v; j += kThreads * N) {
      Pack<N> some = Pack<N>::load(row + j);
#pragma unroll
      for (int k = 0; k < N; k++)
        some.item[k] = j + k == label ? static_cast<float>(factor * (p - 1))
                                      : expf(some.item[k] - sums.largest) * scale;
      some.store(to + j);
    }
    __syncthreads();  // the next row's label may lie where this thread is not done
  }
}

template <class T>
void launch_rows(Stream& s, Rows<T> r) {
  if (r.t == 0) return;
  r.fault = s.fault("labels[%lld] is %d, expected -100 or at least 0 and less than %lld");
  const unsigned blocks = static_cast<unsigned>(r.t < INT32_MAX ? r.t : INT32_MAX);
  constexpr int wide = 16 / sizeof(T);
  const auto fits = [&](const void* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % wide == 0;
  };
  const int64_t bytes = r.v * static_cast<int64_t>(sizeof(T));
  if (r.v % wide != 0 || !fits(r.logits, r.stride) || !fits(r.gradient, r.gradient_stride)) {
    cross_rows<1, false, T><<<blocks, kThreads, 0, s.handle>>>(r);
  } else if (r.gradient && bytes <= shared_bytes() / 2 - kReserved) {
    cudaFuncSetAttribute(cross_rows<wide, true, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
    cross_rows<wide, true, T><<<blocks, kThreads, static_cast<size_t>(bytes), s.handle>>>(r);
  } else {
    cross_rows<wide, false, T><<<blocks, kThreads, 0, s.handle>>>(r);
  }
}

}  // namespace

void cross_entropy(Stream& s, In logits, In labels, Out loss) {  // f32[t, v], i32[t] -> f32[t]
  launch_rows<float>(s, {logits.data<float>(), logits.stride(), labels.data<int32_t>(),
                         logits.size(0), logits.size(1), loss.data<float>(), nullptr, 0, nullptr,
                         false, nullptr});
}
KERNEL(cross_entropy)

void cross_entropy_backward(Stream& s, In logits, In labels, In dloss, Out dlogits) {
  launch_rows<float>(s, {logits.data<float>(), logits.stride(), labels.data<int32_t>(),
                         logits.size(0), logits.size(1), nullptr, dlogits.data<float>(),
                         dlogits.stride(), dloss.data<float>(), false, nullptr});
}
KERNEL(cross_entropy_backward)

// The loss, and the gradient in place of the logits. // T[t, v], i32[t], f32[1] -> f32[t]
void cross_entropy_gradient(Stream& s, InOut logits, In labels, In scale, Out loss) {
  with_float(logits.dtype(), [&](auto type) {
    using T = decltype(type);
    launch_rows<T>(s, {logits.data<T>(), logits.stride(), labels.data<int32_t>(), logits.size(0),
                       logits.size(1), loss.data<float>(), logits.data<T>(), logits.stride(),
                       scale.data<float>(), true, nullptr});
  });
}
KERNEL(cross_entropy_gradient)

}  // namespace ss::cuda
