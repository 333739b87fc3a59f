// dweight[id] = the sum of dy[i] over all i with that id, in the order of i, and what `plus` has. Ids are sorted, stably
// (CUB's radix sort). A block takes kRun neighbours of the sorted ids: what lies in it whole is
// written at once; sums of ids that reach over an edge go to `parts`, and are added in a second step,
// by the block in which the id begins.
#include <cub/device/device_radix_sort.cuh>

#include "device/fault.cuh"
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "scratch.h"

namespace ss::cuda {
namespace {

constexpr int kRun = 32;
constexpr int kThreads = 128;

struct Sorted {
  const int32_t *ids, *order;  // [t]
  int64_t t, rows;
  float* parts;  // [runs, 2, d]: sums of a run's first id, and of its last
};

__global__ void number(const int32_t* ids, int64_t t, int64_t rows, int32_t* order, Fault* fault) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < t; i += step) {
    order[i] = static_cast<int32_t>(i);
    if (ids[i] < 0 || ids[i] >= rows) fault->report(i, ids[i], rows - 1);
  }
}

template <class Y>
__device__ void leave(Y& to, float total, bool add) {
  from_float(to, add ? to_float(to) + total : total);
}

template <class T, class Y>
__global__ void __launch_bounds__(kThreads)
    sum_runs(Sorted s, const T* dy, int64_t stride, int64_t d, bool add, Y* dweight, int64_t y_stride) {
  __shared__ int32_t ids[kRun + 2], order[kRun];  // ids with a neighbour on each side
  const int64_t first = int64_t{blockIdx.x} * kRun;
  const int count = static_cast<int>(s.t - first < kRun ? s.t - first : kRun);
  for (int i = threadIdx.x; i < count + 2; i += kThreads) {
    const int64_t at = first + i - 1;
    ids[i] = at >= 0 && at < s.t ? s.ids[at] : -1;
    if (i < count) order[i] = s.order[first + i];
  }
  __syncthreads();
  const int64_t j = blockIdx.y * int64_t{kThreads} + threadIdx.x;
  if (j >= d) return;
  float* parts = s.parts + blockIdx.x * 2 * d + j;
  float total = 0;
  int begin = 0;
  for (int i = 0; i < count; i++) {
    total += to_float(dy[order[i] * stride + j]);
    const int32_t id = ids[i + 1];
    if (i + 1 < count && ids[i + 2] == id) continue;
    const bool before = begin == 0 && ids[0] == id, after = i + 1 == count && ids[i + 2] == id;
    if (before)
      parts[0] = total;
    else if (after)
      parts[d] = total;
    else if (id >= 0 && id < s.rows)
      leave(dweight[id * y_stride + j], total, add);
    total = 0;
    begin = i + 1;
  }
}

// An id that begins in this run and goes on in the next.
template <class Y>
__global__ void __launch_bounds__(kThreads) join_runs(Sorted s, int64_t d, bool add, Y* dweight, int64_t y_stride) {
  const int64_t first = int64_t{blockIdx.x} * kRun, end = first + kRun;
  if (end >= s.t || s.ids[end] != s.ids[end - 1]) return;
  const int32_t id = s.ids[end];
  if (first > 0 && s.ids[first] == id && s.ids[first - 1] == id) return;  // it began before
  const int64_t j = blockIdx.y * int64_t{kThreads} + threadIdx.x;
  if (j >= d || id < 0 || id >= s.rows) return;
  float total = s.parts[blockIdx.x * 2 * d + d + j];
  for (int64_t run = blockIdx.x + 1; run * kRun < s.t && s.ids[run * kRun] == id; run++)
    total += s.parts[run * 2 * d + j];
  leave(dweight[id * y_stride + j], total, add);
}

int bits_of(int64_t rows) {
  int bits = 1;
  while (bits < 32 && (int64_t{1} << bits) < rows) bits++;
  return bits;
}

}  // namespace

void embedding_backward(Stream& s, In dy, In ids, Opt plus, int64_t rows, Out dweight) {
  const int64_t t = dy.size(0), d = dy.size(1), size = size_of(dweight.dtype());
  if (rows == 0 || d == 0) return;
  const auto bytes_of = [&](int64_t items) { return static_cast<size_t>(items * size); };
  if (!plus)
    cudaMemset2DAsync(dweight.view->data, bytes_of(dweight.stride()), 0, bytes_of(d), static_cast<size_t>(rows),
                      s.handle);
  else if (plus.view->data != dweight.view->data)
    cudaMemcpy2DAsync(dweight.view->data, bytes_of(dweight.stride()), plus.view->data, bytes_of(plus.stride()),
                      bytes_of(d), static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, s.handle);
  const bool add = static_cast<bool>(plus);
  if (t == 0) return;
  const int32_t* given = ids.data<int32_t>();
  const int64_t runs = (t + kRun - 1) / kRun;
  size_t bytes = 0;
  // Ids out of range may have any bits: they come anywhere, and are passed over.
  const auto sort = [&](void* memory, int32_t* sorted, const int32_t* from, int32_t* order) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, given, sorted, from, order,
                                           static_cast<int>(t), 0, bits_of(rows), s.handle);
  };
  sort(nullptr, nullptr, nullptr, nullptr);
  const int64_t room = static_cast<int64_t>((bytes + 255) / 256 * 256);
  const Scratch scratch(s, room + 3 * (t + 63) / 64 * 256 + 256 + runs * 2 * d * 4);
  if (!scratch.floats()) return;
  char* memory = reinterpret_cast<char*>(scratch.floats());
  int32_t *sorted = reinterpret_cast<int32_t*>(memory + room), *from = sorted + t, *order = from + t;
  float* parts = reinterpret_cast<float*>(order + t);
  const int64_t blocks = (t + 255) / 256;
  number<<<static_cast<unsigned>(blocks < 4096 ? blocks : 4096), 256, 0, s.handle>>>(
      given, t, rows, from, s.fault("ids[%lld] is %d, expected 0 to %lld"));
  sort(memory, sorted, from, order);
  const Sorted all{sorted, order, t, rows, parts};
  const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>((d + kThreads - 1) / kThreads));
  with_float(dy.dtype(), [&](auto type) {
    with_float(dweight.dtype(), [&](auto out) {
      using T = decltype(type);
      using Y = decltype(out);
      sum_runs<T, Y><<<grid, kThreads, 0, s.handle>>>(all, dy.data<T>(), dy.stride(), d, add,
                                                      dweight.data<Y>(), dweight.stride());
      join_runs<Y><<<grid, kThreads, 0, s.handle>>>(all, d, add, dweight.data<Y>(), dweight.stride());
    });
  });
}
KERNEL(embedding_backward)

}  // namespace ss::cuda
