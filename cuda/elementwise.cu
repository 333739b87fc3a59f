// Small ops that only move or touch each element once: memory bound. Threads take neighbouring
// packs of up to 16 bytes, across all rows.
#include <type_traits>

#include "device/pack.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

int64_t row_length(const View& v) {
  int64_t length = 1;
  for (int i = 1; i < v.rank; i++) length *= v.shape[i];
  return length;
}

template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

// y = f(a) or f(a, b), each element through f32.
template <int N, bool Two, class A, class B, class Y, class F>
__global__ void map_packs(F f, int64_t rows, int64_t length, Rows<Y> y, Rows<const A> a,
                          Rows<const B> b) {
  let_next_start();
  wait_for_previous();
  const int64_t across = length / N, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < rows * across; p += step) {
    const int64_t row = rows == 1 ? 0 : p / across, column = (p - row * across) * N;
    Pack<N> v = Pack<N>::load(a.data + row * a.stride + column);
    if constexpr (Two) {
      const Pack<N> w = Pack<N>::load(b.data + row * b.stride + column);
#pragma unroll
      for (int k = 0; k < N; k++) v.item[k] = f(v.item[k], w.item[k]);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) v.item[k] = f(v.item[k]);
    }
    v.store(y.data + row * y.stride + column);
  }
}

template <int N, bool Two, class A, class B, class Y, class F>
void launch_map(Stream& s, F f, int64_t rows, int64_t length, Out y, In a, In b) {
  const int64_t blocks = (rows * (length / N) + 255) / 256;
  launch(s.handle, map_packs<N, Two, A, B, Y, F>,
         {static_cast<unsigned>(blocks < 1 << 20 ? blocks : 1 << 20), 256}, f, rows, length,
         Rows<Y>{y.data<Y>(), y.stride()}, Rows<const A>{a.data<A>(), a.stride()},
         Rows<const B>{b.data<B>(), b.stride()});
}

// Where f takes one, b is a again; b has the dtype of a, or that of y where it is y itself.
template <bool Two, bool OfY = false, class F>
void map(Stream& s, F f, Out y, In a, In b) {
  int64_t rows = y.size(0), length = row_length(*y.view);
  if (rows == 0 || length == 0) return;
  if (y.stride() == length && a.stride() == length && b.stride() == length) {
    length *= rows;  // all dense: one row
    rows = 1;
  }
  with_float(a.dtype(), [&](auto t) {
    with_float(y.dtype(), [&](auto yt) {
      using T = decltype(t);
      using Y = decltype(yt);
      using B = std::conditional_t<OfY, Y, T>;
      constexpr int wide = 16 / (sizeof(T) > sizeof(Y) ? sizeof(T) : sizeof(Y));
      if (length % wide == 0 && packs<T>(a, wide) && packs<B>(b, wide) && packs<Y>(y, wide))
        launch_map<wide, Two, T, B, Y>(s, f, rows, length, y, a, b);
      else
        launch_map<1, Two, T, B, Y>(s, f, rows, length, y, a, b);
    });
  });
}

struct Same {
  __device__ float operator()(float x) const { return x; }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Times {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Constant {
  float value;
  __device__ float operator()(float) const { return value; }
};
struct Scaled {
  const float* factor;
  __device__ float operator()(float x) const { return x * *factor; }
};
struct NegExp {  // in double, since everything after depends on it
  __device__ float operator()(float x) const {
    return static_cast<float>(-exp(static_cast<double>(x)));
  }
};

// A list of row numbers: absent, or i32 with the fault that tells of those that are out of range.
struct Numbers {
  const int32_t* list;
  int64_t limit;  // rows that there are
  bool negative;  // is allowed, and means no row
  Fault* fault;

  // The number of row i, -1 for none.
  __device__ int64_t at(int64_t i, bool tell) const {
    if (!list) return i;
    const int32_t row = list[i];
    if (row >= 0 && row < limit) return row;
    if (tell && !(negative && row < 0)) fault->report(i, row, limit);
    return -1;
  }
};

// Rows as `units` of U: to[targets[i]] = from[sources[i]], or zeros where there is no source.
template <class U>
__global__ void move_rows(int64_t n, int64_t units, const U* from, int64_t from_stride,
                          Numbers sources, U* to, int64_t to_stride, Numbers targets) {
  let_next_start();
  wait_for_previous();
  const int64_t first = blockIdx.y * int64_t{blockDim.x} + threadIdx.x,
                step = int64_t{gridDim.y} * blockDim.x;
  const bool tell = first == 0;
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const int64_t source = sources.at(i, tell), target = targets.at(i, tell);
    if (target < 0) continue;
    U* row = to + target * to_stride;
    if (from && source >= 0)
      for (int64_t j = first; j < units; j += step) row[j] = from[source * from_stride + j];
    else
      for (int64_t j = first; j < units; j += step) row[j] = U{};
  }
}

// `from` null: zeros.
void move(Stream& s, int64_t n, const View* from, Numbers sources, const View& to,
          Numbers targets) {
  const int64_t size = size_of(to.dtype), bytes = row_length(to) * size;
  if (n == 0 || bytes == 0) return;
  const auto fits = [&](const View* v, int64_t unit) {
    return !v || (reinterpret_cast<uintptr_t>(v->data) % unit == 0 && v->stride * size % unit == 0);
  };
  const auto launch_units = [&](auto unit) {
    using U = decltype(unit);
    const int64_t each = static_cast<int64_t>(sizeof(U)), units = bytes / each;
    const int64_t across = (units + 1023) / 1024;  // four units a thread
    const dim3 grid(static_cast<unsigned>(n < INT32_MAX ? n : INT32_MAX),
                    static_cast<unsigned>(across < 65535 ? across : 65535));
    const unsigned threads = units >= 256 ? 256 : static_cast<unsigned>((units + 31) / 32 * 32);
    launch(s.handle, move_rows<U>, {grid, threads}, n, units,
           from ? static_cast<const U*>(from->data) : nullptr,
        from ? from->stride * size / each : 0, sources, static_cast<U*>(to.data),
        to.stride * size / each, targets);
  };
  if (bytes % 16 == 0 && fits(from, 16) && fits(&to, 16))
    launch_units(uint4{});
  else if (bytes % 4 == 0 && fits(from, 4) && fits(&to, 4))
    launch_units(uint32_t{});
  else
    launch_units(uint16_t{});
}

constexpr Numbers kInOrder{nullptr, 0, false, nullptr};

Numbers slots_of(Stream& s, In list, int64_t limit, const char* message) {
  return {list.data<int32_t>(), limit, true, s.fault(message)};
}

}  // namespace

// Also makes a strided x dense.
void cast(Stream& s, In x, Out y) {
  if (x.dtype() == y.dtype()) return move(s, y.size(0), x.view, kInOrder, *y.view, kInOrder);
  map<false>(s, Same{}, y, x, x);
}
KERNEL(cast)

void add(Stream& s, In a, In b, Out y) { map<true>(s, Sum{}, y, a, b); }
KERNEL(add)

void mul(Stream& s, In a, In b, Out y) { map<true>(s, Times{}, y, a, b); }
KERNEL(mul)

void fill(Stream& s, InOut x, float value) {
  map<false>(s, Constant{value}, Out{x.view}, In{x.view}, In{x.view});
}
KERNEL(fill)

void accumulate(Stream& s, In x, InOut sum) {
  map<true, true>(s, Sum{}, Out{sum.view}, x, In{sum.view});
}
KERNEL(accumulate)

void scale(Stream& s, InOut x, In factor) {
  map<false>(s, Scaled{factor.data<float>()}, Out{x.view}, In{x.view}, In{x.view});
}
KERNEL(scale)

void neg_exp(Stream& s, In x, Out y) { map<false>(s, NegExp{}, y, x, x); }
KERNEL(neg_exp)

// A row whose number is out of range becomes zero.
void take_rows(Stream& s, In x, In rows, Out y) {  // T[t, d], i32[m] -> T[m, d]
  const Numbers sources{rows.data<int32_t>(), x.size(0), false,
                        s.fault("rows[%lld] is %d, expected at least 0 and less than %lld")};
  move(s, y.size(0), x.view, sources, *y.view, kInOrder);
}
KERNEL(take_rows)

// Negative slots are no rows; one that is too large is passed over.
void zero_slots(Stream& s, InOut state, In slots) {  // [p, ...], i32[s]
  move(s, slots.size(0), nullptr, kInOrder, *state.view,
       slots_of(s, slots, state.size(0), "slots[%lld] is %d, expected less than %lld"));
}
KERNEL(zero_slots)

// to[to_slots[i]] = from[from_slots[i]]; a row that is written must not be read by the same call.
// Copying from a negative slot leaves zeros, to one nothing.
void copy_slots(Stream& s, In from, In from_slots, InOut to, In to_slots) {
  move(s, to_slots.size(0), from.view,
       slots_of(s, from_slots, from.size(0), "from_slots[%lld] is %d, expected less than %lld"),
       *to.view,
       slots_of(s, to_slots, to.size(0), "to_slots[%lld] is %d, expected less than %lld"));
}
KERNEL(copy_slots)

}  // namespace ss::cuda
