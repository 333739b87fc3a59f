// The gradients of the norms; formulas in native/cpu/norm_backward.cc. x and dy are read, dx (and the norm's
// result, where it is asked for) is written once. Rows of fours, of up to 4,096: one, two or four warps take a row at a time, which lies
// in their registers, and keep their sums of dw (and db) there too; a block of four warps adds its own
// in shared memory. Other rows: a block takes a row, twice: for the sums, and from the cache for dx. The
// sums of all blocks are added at the end (row_sums.cuh).
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "device/words.cuh"
#include "dispatch.cuh"
#include "row_sums.cuh"
#include "scratch.h"

namespace ss::cuda {
namespace {

constexpr int kMultiprocessors = 132;  // of an H100; the same on every card, so that sums are
constexpr int kBlocks = 4 * kMultiprocessors;
constexpr int kThreads = 192;
constexpr int64_t kShared = 12 << 10;  // floats: longer rows have their sums in memory

struct Rows {
  const void *x, *dy;
  const float *weight, *dsum;  // null where there is none
  void* dx;
  float* dresidual;  // null where there is none
  void* normed;      // of dx's type, or null
  int64_t x_stride, dy_stride, dsum_stride, dx_stride, dresidual_stride, normed_stride, t, d;
  float eps;
  float* parts;  // [blocks, d or 2 d]
  bool in_memory;
};

// RMS norm, or with Layer the layer norm. X: of x; T: of dy; D: of dx.
template <bool Layer, int N, class X, class T, class D>
__global__ void __launch_bounds__(kThreads) norm_rows_back(const Rows r) {
  extern __shared__ float memory[];
  let_next_start();
  wait_for_previous();
  const int64_t width = Layer ? 2 * r.d : r.d;
  float* sums = r.in_memory ? r.parts + blockIdx.x * width : memory;
  // A thread has the same columns in every row.
  const auto columns = [&](auto&& f) {
    for (int64_t j = threadIdx.x * N; j < r.d; j += kThreads * N) f(j);
  };
  columns([&](int64_t j) {
    for (int k = 0; k < N; k++) sums[j + k] = 0;
    for (int k = 0; k < N && Layer; k++) sums[r.d + j + k] = 0;
  });
  const float many = static_cast<float>(r.d);
  for (int64_t i = blockIdx.x; i < r.t; i += gridDim.x) {
    const X* x = static_cast<const X*>(r.x) + i * r.x_stride;
    const T* dy = static_cast<const T*>(r.dy) + i * r.dy_stride;
    const auto gradient = [&](int64_t j, const Pack<N>& given) {  // dy w
      if (!r.weight) return given;
      Pack<N> g = Pack<N>::load(r.weight + j);
#pragma unroll
      for (int k = 0; k < N; k++) g.item[k] *= given.item[k];
      return g;
    };
    float mean = 0;
    if constexpr (Layer) {
      columns([&](int64_t j) {
        const Pack<N> v = Pack<N>::load(x + j);
#pragma unroll
        for (int k = 0; k < N; k++) mean += v.item[k];
      });
      mean = block_sum(mean) / many;
    }
    float squares = 0, products = 0, level = 0;
    columns([&](int64_t j) {
      const Pack<N> v = Pack<N>::load(x + j), g = gradient(j, Pack<N>::load(dy + j));
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float at = v.item[k] - mean;
        squares = fmaf(at, at, squares);
        products = fmaf(at, g.item[k], products);
        if (Layer) level += g.item[k];
      }
    });
    squares = block_sum(squares);
    products = block_sum(products);
    if (Layer) level = block_sum(level) / many;
    const float scale = 1.0f / sqrtf(squares / many + r.eps);
    const float along = products / many * scale * scale;
    columns([&](int64_t j) {
      const Pack<N> v = Pack<N>::load(x + j), given = Pack<N>::load(dy + j), g = gradient(j, given);
      Pack<N> out;
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float at = v.item[k] - mean;
        sums[j + k] = fmaf(given.item[k], at * scale, sums[j + k]);
        if (Layer) sums[r.d + j + k] += given.item[k];
        out.item[k] = scale * (g.item[k] - level - at * along);
      }
      if (r.dsum) {
        const Pack<N> more = Pack<N>::load(r.dsum + i * r.dsum_stride + j);
#pragma unroll
        for (int k = 0; k < N; k++) out.item[k] += more.item[k];
      }
      out.store(static_cast<D*>(r.dx) + i * r.dx_stride + j);
      if (r.dresidual) out.store(r.dresidual + i * r.dresidual_stride + j);
      if constexpr (!Layer) {
        if (!r.normed) return;
        Pack<N> y = Pack<N>::load(r.weight + j);
#pragma unroll
        for (int k = 0; k < N; k++) y.item[k] *= v.item[k] * scale;
        y.store(static_cast<D*>(r.normed) + i * r.normed_stride + j);
      }
    });
  }
  if (r.in_memory) return;
  columns([&](int64_t j) {
    for (int k = 0; k < N; k++) r.parts[blockIdx.x * width + j + k] = sums[j + k];
    for (int k = 0; k < N && Layer; k++)
      r.parts[blockIdx.x * width + r.d + j + k] = sums[r.d + j + k];
  });
}

constexpr int kWarps = 4;

// The sum over the `team` neighbouring warps of a row; all warps of the block call it together.
__device__ inline float row_sum(float x, int team, float* of_warp) {
  x = warp_sum(x);
  if (team == 1) return x;
  const int warp = threadIdx.x / 32;
  __syncthreads();  // the last call's sums have been read
  if (threadIdx.x % 32 == 0) of_warp[warp] = x;
  __syncthreads();
  float total = 0;
  for (int i = warp / team * team, end = i + team; i < end; i++) total += of_warp[i];
  return total;
}

// A thread has P fours of a row, 128 `team` columns apart.
template <bool Layer, int P, class X, class T, class D>
__global__ void __launch_bounds__(32 * kWarps, Layer || P > 6 ? 3 : 4)
    norm_rows_held(const Rows r, int team) {
  __shared__ float of_warp[kWarps];
  extern __shared__ __align__(16) float memory[];  // [d], by one warp after the other
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, rows = kWarps / team, step = 128 * team;
  const int first = (warp % team * 32 + threadIdx.x % 32) * 4, d = static_cast<int>(r.d);
  float dw[P][4] = {}, db[Layer ? P : 1][4] = {};
  const float many = static_cast<float>(r.d);
  for (int64_t block = int64_t{blockIdx.x} * rows; block < r.t; block += int64_t{gridDim.x} * rows) {
    const int64_t i = block + warp / team;
    const bool there = i < r.t;
    const int end = there ? d : 0;
    const X* x_at = static_cast<const X*>(r.x) + i * r.x_stride;
    const T* dy_at = static_cast<const T*>(r.dy) + i * r.dy_stride;
    Words<X, 4> x[P];
    Words<T, 4> dy[P];
    Words<float, 4> more[Layer ? 1 : P];
#pragma unroll
    for (int p = 0; p < P; p++) {
      const int j = first + p * step;
      x[p] = {}, dy[p] = {};
      if (j < end) x[p] = Words<X, 4>::load(x_at + j), dy[p] = Words<T, 4>::load(dy_at + j);
    }
#pragma unroll
    for (int p = 0; p < P; p++) {
      const int j = first + p * step;
      if constexpr (Layer) break;
      more[p] = {};
      if (r.dsum && j < end) more[p] = Words<float, 4>::load(r.dsum + i * r.dsum_stride + j);
    }
    const auto weight = [&](int j) {
      Pack<4> w{{1, 1, 1, 1}};
      if (r.weight && j < end) w = Pack<4>::load(r.weight + j);
      return w;
    };
    float mean = 0;
    if constexpr (Layer) {
#pragma unroll
      for (int p = 0; p < P; p++)
#pragma unroll
        for (int k = 0; k < 4; k++) mean += x[p][k];
      mean = row_sum(mean, team, of_warp) / many;
    }
    float squares = 0, products = 0, level = 0;
#pragma unroll
    for (int p = 0; p < P; p++) {
      const int j = first + p * step;
      const Pack<4> w = weight(j);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const float at = Layer && j >= end ? 0.0f : x[p][k] - mean, g = dy[p][k] * w.item[k];
        squares = fmaf(at, at, squares);
        products = fmaf(at, g, products);
        if (Layer) level += g;
      }
    }
    squares = row_sum(squares, team, of_warp);
    products = row_sum(products, team, of_warp);
    if (Layer) level = row_sum(level, team, of_warp) / many;
    const float scale = 1.0f / sqrtf(squares / many + r.eps);
    const float along = products / many * scale * scale;
#pragma unroll
    for (int p = 0; p < P; p++) {
      const int j = first + p * step;
      if (j >= end) continue;
      Pack<4> w = weight(j), out;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const float at = x[p][k] - mean, given = dy[p][k];
        dw[p][k] = fmaf(given, at * scale, dw[p][k]);
        if (Layer) db[p][k] += given;
        out.item[k] = fmaf(scale, given * w.item[k] - level - at * along, Layer ? 0.0f : more[Layer ? 0 : p][k]);
      }
      out.store(static_cast<D*>(r.dx) + i * r.dx_stride + j);
      if (r.dresidual) out.store(r.dresidual + i * r.dresidual_stride + j);
      if constexpr (!Layer) {
        if (!r.normed) continue;
#pragma unroll
        for (int k = 0; k < 4; k++) w.item[k] *= x[p][k] * scale;
        w.store(static_cast<D*>(r.normed) + i * r.normed_stride + j);
      }
    }
  }
  // The block's sums: of the warps that had the same columns, in their order.
  const auto leave = [&](const float(&sums)[P][4], float* to) {
    for (int row = 0; row < rows; row++) {
      if (warp / team == row)
#pragma unroll
        for (int p = 0; p < P; p++) {
          const int j = first + p * step;
          if (j >= d) continue;
          Pack<4> total = row ? Pack<4>::load(memory + j) : Pack<4>{};
#pragma unroll
          for (int k = 0; k < 4; k++) total.item[k] += sums[p][k];
          total.store(row + 1 < rows ? memory + j : to + j);
        }
      __syncthreads();
    }
  };
  float* parts = r.parts + blockIdx.x * (Layer ? 2 * r.d : r.d);
  leave(dw, parts);
  if constexpr (Layer) leave(db, parts + r.d);
}

template <class T>
bool fours(const void* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}

// Where rows fit in registers, by fours: launches, and says how many blocks leave sums.
template <bool Layer, class X, class T, class D>
int64_t hold_rows(Stream& s, const Rows& r) {
  const int team = r.d <= 1024 ? 1 : r.d <= 2048 ? 2 : 4, rows = kWarps / team;
  const int64_t passes = (r.d + 128 * team - 1) / (128 * team), needed = (r.t + rows - 1) / rows;
  const int64_t most = (Layer || passes > 6 ? 3 : 4) * int64_t{kMultiprocessors};
  const int64_t blocks = needed < most ? needed : most;
  const Grid grid{static_cast<unsigned>(blocks), 32 * kWarps, static_cast<size_t>(r.d) * sizeof(float)};
  if (blocks == 0) return 0;
  if (passes <= 4)
    launch(s.handle, norm_rows_held<Layer, 4, X, T, D>, grid, r, team);
  else if (passes <= 6)
    launch(s.handle, norm_rows_held<Layer, 6, X, T, D>, grid, r, team);
  else
    launch(s.handle, norm_rows_held<Layer, 8, X, T, D>, grid, r, team);
  return blocks;
}

// dbias: of the layer norm.
template <bool Layer, class X, class T, class D>
void walk_rows(Stream& s, Rows r, float* dweight, float* dbias) {
  if (r.d == 0) return;
  const int64_t width = Layer ? 2 * r.d : r.d;
  int64_t blocks = r.t < kBlocks ? r.t : kBlocks;
  const Scratch scratch(s, blocks * width * static_cast<int64_t>(sizeof(float)) + 16);
  if (!scratch.floats()) return;
  r.parts = scratch.floats();
  r.in_memory = width > kShared;
  const bool wide = r.d % 4 == 0 && fours<X>(r.x, r.x_stride) && fours<T>(r.dy, r.dy_stride) &&
                    fours<D>(r.dx, r.dx_stride) && fours<float>(r.weight, 0) &&
                    fours<float>(r.dsum, r.dsum_stride) &&
                    fours<float>(r.dresidual, r.dresidual_stride) &&
                    fours<D>(r.normed, r.normed_stride);
  const Grid grid{static_cast<unsigned>(blocks), kThreads,
                  r.in_memory ? 0 : static_cast<size_t>(width) * sizeof(float)};
  if (wide && r.d <= 4096)
    blocks = hold_rows<Layer, X, T, D>(s, r);
  else if (blocks > 0 && wide)
    launch(s.handle, norm_rows_back<Layer, 4, X, T, D>, grid, r);
  else if (blocks > 0)
    launch(s.handle, norm_rows_back<Layer, 1, X, T, D>, grid, r);
  add_parts(s, r.parts, blocks, width, r.d, dweight);
  if (Layer) add_parts(s, r.parts + r.d, blocks, width, r.d, dbias);
}

Rows rows_of(In x, const float* weight, In dy, float eps, Out dx) {
  Rows r{};
  r.x = x.view->data, r.dy = dy.view->data, r.weight = weight, r.dx = dx.view->data;
  r.x_stride = x.stride(), r.dy_stride = dy.stride(), r.dx_stride = dx.stride();
  r.t = x.size(0), r.d = x.size(1), r.eps = eps;
  return r;
}

}  // namespace

void rms_norm_backward(Stream& s, In x, In weight, In dy, float eps, Out dx, Out dweight) {
  const Rows r = rows_of(x, weight.data<float>(), dy, eps, dx);
  with_float(x.dtype(), [&](auto xt) {
    with_float(dy.dtype(), [&](auto yt) {
      using X = decltype(xt);
      walk_rows<false, X, decltype(yt), X>(s, r, dweight.data<float>(), nullptr);
    });
  });
}
KERNEL(rms_norm_backward)

void add_rms_norm_backward(Stream& s, In total, In weight, In dy, Opt dsum, OptInOut normed, float eps,
                           Out dx, Out dresidual, Out dweight) {
  Rows r = rows_of(total, weight.data<float>(), dy, eps, dx);
  if (dsum) r.dsum = dsum.data<float>(), r.dsum_stride = dsum.stride();
  r.dresidual = dresidual.data<float>(), r.dresidual_stride = dresidual.stride();
  if (normed) r.normed = normed.view->data, r.normed_stride = normed.stride();
  with_float(dy.dtype(), [&](auto yt) {
    using T = decltype(yt);
    walk_rows<false, float, T, T>(s, r, dweight.data<float>(), nullptr);
  });
}
KERNEL(add_rms_norm_backward)

void layer_norm_backward(Stream& s, In x, Opt weight, In dy, float eps, Out dx, Out dweight,
                         Out dbias) {
  const Rows r = rows_of(x, weight ? weight.data<float>() : nullptr, dy, eps, dx);
  with_float(x.dtype(), [&](auto xt) {
    with_float(dy.dtype(), [&](auto yt) {
      using X = decltype(xt);
      walk_rows<true, X, decltype(yt), X>(s, r, dweight.data<float>(), dbias.data<float>());
    });
  });
}
KERNEL(layer_norm_backward)

}  // namespace ss::cuda
