// dweight[i] = sum over the places p of expert i of dy[p]^T x[row of p], in f32 and in their order. A
// block makes a tile of one expert's matrix from all of its places, so nothing has to be added up
// afterwards; an expert without any leaves zeros.
//
// weight_mma (dy and x both bf16 or both f16, 16-byte rows): 128 x 128 a block, 64 x 64 a warp, on the
// tensor cores; places lie in shared memory as in memory, and matrices are turned on the way to the
// registers. Three stages of 32 places, two of them on their way. weight_fma (any types): 64 x 64.
#include <type_traits>

#include "device/fault.cuh"
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "dispatch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

struct Grouped {
  const void *dy, *x;
  const int32_t *order, *offsets;
  void* dweight;  // [e, n, d]
  int64_t first_expert, n, d, places, k, dy_stride, x_stride;
  Fault* fault;

  // The row of x for a place. What is out of range is reported, and row 0 read instead.
  __device__ int64_t row(int64_t place) const {
    if (k == 0) return place;
    const int64_t at = order[place];
    if (at >= 0 && at < places) return at / k;
    fault->report(place, static_cast<int32_t>(at), places - 1);
    return 0;
  }
  __device__ int64_t first(int64_t expert) const {
    const int64_t at = offsets[expert];
    return at < 0 ? 0 : at < places ? at : places;
  }
};

constexpr int kTile = 128, kPlaces = 32, kStages = 3;
constexpr int kPitch = kTile + 8;  // rows that share no banks in load_turned
constexpr int kChunks = kTile / 8;  // 16-byte ones of a place

template <class T>
using Stage = T[2][kPlaces][kPitch];  // of dy, of x
template <class T>
constexpr int kBytes = kStages * static_cast<int>(sizeof(Stage<T>));

template <class T, class Y>
__global__ void __launch_bounds__(128) weight_mma(const Grouped g) {
  extern __shared__ __align__(16) unsigned char memory[];
  Stage<T>* stages = reinterpret_cast<Stage<T>*>(memory);
  const int64_t expert = g.first_expert + blockIdx.z, begin = g.first(expert), end = g.first(expert + 1);
  const int64_t n0 = blockIdx.y * int64_t{kTile}, d0 = blockIdx.x * int64_t{kTile};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t steps = end > begin ? (end - begin + kPlaces - 1) / kPlaces : 0;
  const T *dy = static_cast<const T*>(g.dy), *x = static_cast<const T*>(g.x);

  const auto fetch = [&](int64_t step) {
    if (step < steps) {
      Stage<T>& to = stages[step % kStages];
#pragma unroll
      for (int i = threadIdx.x; i < kPlaces * kChunks; i += 128) {
        const int r = i / kChunks, c = i % kChunks * 8;
        const int64_t p = begin + step * kPlaces + r;
        const bool has_y = p < end && n0 + c < g.n, has_x = p < end && d0 + c < g.d;
        copy_async(&to[0][r][c], has_y ? dy + p * g.dy_stride + n0 + c : dy, has_y);
        copy_async(&to[1][r][c], has_x ? x + g.row(p) * g.x_stride + d0 + c : x, has_x);
      }
    }
    end_copy_group();  // an empty one keeps the count
  };

  float c[4][8][4] = {};  // 16 x 8 each
  const int y0 = warp / 2 * 64, x0 = warp % 2 * 64;
  for (int step = 0; step < kStages - 1; step++) fetch(step);
  for (int64_t step = 0; step < steps; step++) {
    wait_copy_groups<kStages - 2>();
    __syncthreads();  // this step's places are there, and those before are read
    fetch(step + kStages - 1);
    const Stage<T>& now = stages[step % kStages];
#pragma unroll
    for (int kk = 0; kk < kPlaces; kk += 16) {
      uint32_t a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        load_turned(a[i], &now[0][kk + lane / 16 * 8 + lane % 8][y0 + 16 * i + lane / 8 % 2 * 8]);
#pragma unroll
      for (int j = 0; j < 4; j++)
        load_turned(b[j], &now[1][kk + lane / 8 % 2 * 8 + lane % 8][x0 + 16 * j + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
          mma(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
              b[j / 2][j % 2 * 2 + 1], T{});
    }
  }
  Y* to = static_cast<Y*>(g.dweight) + expert * g.n * g.d;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int v = 0; v < 4; v += 2) {
        const int64_t row = n0 + y0 + 16 * i + v / 2 * 8 + lane / 4, column = d0 + x0 + 8 * j + lane % 4 * 2;
        if (row >= g.n || column >= g.d) continue;
        Raw<Y, 2> pair;  // d is a multiple of 8
        from_float(pair.item[0], c[i][j][v]);
        from_float(pair.item[1], c[i][j][v + 1]);
        *reinterpret_cast<Raw<Y, 2>*>(to + row * g.d + column) = pair;
      }
}

template <class T, class X, class Y>
__global__ void __launch_bounds__(256) weight_fma(const Grouped g) {
  constexpr int kSide = 64, kDepth = 16;
  __shared__ __align__(16) float ys[kDepth][kSide], xs[kDepth][kSide];
  const int64_t expert = g.first_expert + blockIdx.z, begin = g.first(expert), end = g.first(expert + 1);
  const int64_t n0 = blockIdx.y * int64_t{kSide}, d0 = blockIdx.x * int64_t{kSide};
  const int own_y = threadIdx.x / 16 * 4, own_x = threadIdx.x % 16 * 4;
  float sums[4][4] = {};
  for (int64_t p0 = begin; p0 < end; p0 += kDepth) {
    __syncthreads();  // the places before are read
    for (int i = threadIdx.x; i < kDepth * kSide; i += 256) {
      const int64_t p = p0 + i / kSide, n = n0 + i % kSide, d = d0 + i % kSide;
      const T* dy = static_cast<const T*>(g.dy) + p * g.dy_stride;
      ys[i / kSide][i % kSide] = p < end && n < g.n ? to_float(dy[n]) : 0.0f;
      const bool there = p < end && d < g.d;
      const X* x = static_cast<const X*>(g.x) + (there ? g.row(p) : 0) * g.x_stride;
      xs[i / kSide][i % kSide] = there ? to_float(x[d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kDepth; kk++) {
      const Pack<4> a = Pack<4>::load(&ys[kk][own_y]), b = Pack<4>::load(&xs[kk][own_x]);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a.item[i], b.item[j], sums[i][j]);
    }
  }
  Y* to = static_cast<Y*>(g.dweight) + expert * g.n * g.d;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t row = n0 + own_y + i, column = d0 + own_x + j;
      if (row < g.n && column < g.d) from_float(to[row * g.d + column], sums[i][j]);
    }
}

template <class T, class X, class Y>
void multiply(Stream& s, const Grouped& g, int64_t experts, bool wide) {
  const auto blocks = [](int64_t size, int64_t tile) {
    return static_cast<unsigned>((size + tile - 1) / tile);
  };
  const unsigned deep = static_cast<unsigned>(experts);
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, X>) {
    if (wide) {
      cudaFuncSetAttribute(weight_mma<T, Y>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes<T>);
      const dim3 tiles(blocks(g.d, kTile), blocks(g.n, kTile), deep);
      return weight_mma<T, Y><<<tiles, 128, kBytes<T>, s.handle>>>(g);
    }
  }
  weight_fma<T, X, Y><<<dim3(blocks(g.d, 64), blocks(g.n, 64), deep), 256, 0, s.handle>>>(g);
}

}  // namespace

// [a, n], [t, d] -> [e, n, d]
void expert_weight_gradient(Stream& s, In dy, In x, In order, In offsets, int64_t k, Out dweight) {
  const int64_t e = dweight.size(0);
  Grouped g{dy.view->data, x.view->data, order.data<int32_t>(), offsets.data<int32_t>(),
            dweight.view->data, 0, dweight.size(1), dweight.size(2), dy.size(0), k, dy.stride(),
            x.stride(), s.fault("order[%lld] is %d, expected 0 to %lld")};
  if (g.n == 0 || g.d == 0) return;
  with_float(dy.dtype(), [&](auto yt) {
    with_float(x.dtype(), [&](auto xt) {
      with_float(dweight.dtype(), [&](auto wt) {
        using T = decltype(yt);
        using X = decltype(xt);
        const bool wide = g.n % 8 == 0 && g.d % 8 == 0 && packs<T>(dy, 8) && packs<X>(x, 8);
        for (; g.first_expert < e; g.first_expert += 65535)
          multiply<T, X, decltype(wt)>(
              s, g, e - g.first_expert < 65535 ? e - g.first_expert : 65535, wide);
      });
    });
  });
}
KERNEL(expert_weight_gradient)

}  // namespace ss::cuda
