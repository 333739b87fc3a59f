// y[p] = x[row of p] weight[expert of p]^T + bias, summed in f32; only experts with rows are read.
//
// expert_few (few places: decode): a warp has one row of an expert's W and takes the expert's rows
// of x eight at a time, so W is read from memory once. Blocks of experts without rows end at once.
// expert_tiles (many, x, W and y all bf16 or all f16, 16-byte rows): expert_tile.cuh. expert_mma (y of
// another type): 64 x 128 of y a block on the tensor cores, three stages of 32 columns; expert_fma (any types): 64 x 64 in f32. Tiles are laid
// over the experts' rows on the device: there are at most places / 64 + experts of them.
#include "device/mma.cuh"
#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "stream.h"

namespace ss::cuda {

bool expert_tiles(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y);

namespace {

struct Grouped {
  const void *x, *w;
  const float* bias;
  const int32_t *order, *offsets;
  void* y;  // [places, n]
  int64_t t, e, n, d, places, k;
  int64_t x_stride, w_stride, bias_stride;
  Fault* fault;

  // The row of x for a place. What is out of range is reported, and row 0 read instead.
  __device__ int64_t row(int64_t place) const {
    const int64_t at = k > 0 ? order[place] : place;
    if (at >= 0 && at < places) return k > 0 ? at / k : at;
    fault->report(place, static_cast<int32_t>(at), places - 1);
    return 0;
  }
  __device__ int64_t first(int64_t expert) const {
    const int64_t at = offsets[expert];
    return at < 0 ? 0 : at < places ? at : places;
  }
};

template <class Y>
__device__ inline void put(const Grouped& g, int64_t expert, int64_t place, int64_t column,
                           float sum) {
  if (g.bias) sum += g.bias[expert * g.bias_stride + column];
  from_float(static_cast<Y*>(g.y)[place * g.n + column], sum);
}

// Zeros for the places after the last expert's.
template <class Y>
__global__ void clear_rest(const Grouped g) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = g.first(g.e) * g.n + blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
       i < g.places * g.n; i += step)
    from_float(static_cast<Y*>(g.y)[i], 0.0f);
}

constexpr int kFewWarps = 8, kFewRows = 8;

template <int V, class X, class W, class Y>
__global__ void __launch_bounds__(32 * kFewWarps) expert_few(const Grouped g) {
  const int64_t expert = blockIdx.y, begin = g.first(expert), end = g.first(expert + 1);
  const int lane = threadIdx.x % 32;
  const int64_t column = blockIdx.x * int64_t{kFewWarps} + threadIdx.x / 32;
  if (column >= g.n) return;
  const W* w = static_cast<const W*>(g.w) + expert * g.w_stride + column * g.d;
  for (int64_t at = begin; at < end; at += kFewRows) {
    const X* x[kFewRows];
    float sums[kFewRows] = {};
    const int rows = static_cast<int>(end - at < kFewRows ? end - at : kFewRows);
#pragma unroll
    for (int r = 0; r < kFewRows; r++)
      x[r] = static_cast<const X*>(g.x) + (r < rows ? g.row(at + r) : 0) * g.x_stride;
    for (int64_t j = lane * V; j < g.d; j += 32 * V) {
      const Pack<V> u = Pack<V>::load(w + j);
#pragma unroll
      for (int r = 0; r < kFewRows; r++) {
        if (r >= rows) break;
        const Pack<V> v = Pack<V>::load(x[r] + j);
#pragma unroll
        for (int i = 0; i < V; i++) sums[r] = fmaf(u.item[i], v.item[i], sums[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kFewRows; r++) {
      if (r >= rows) break;
      const float sum = warp_sum(sums[r]);
      if (lane == 0) put<Y>(g, expert, at + r, column, sum);
    }
  }
}

constexpr int kTileM = 64, kTileN = 128, kTileK = 32, kStages = 3;
constexpr int kPitch = kTileK + 8;  // elements; rows of 80 bytes share no banks in load_matrices

// Tile number `tile` of all experts' rows: false where there are fewer.
struct Tile {
  int64_t expert, begin, end;
};
__device__ inline bool find_tile(const Grouped& g, int64_t tile, Tile* found) {
  for (int64_t i = 0; i < g.e; i++) {
    const int64_t begin = g.first(i), end = g.first(i + 1);
    const int64_t tiles = (end - begin + kTileM - 1) / kTileM;
    if (tile < tiles) {
      *found = {i, begin + tile * kTileM, end};
      return true;
    }
    tile -= tiles > 0 ? tiles : 0;
  }
  return false;
}

template <class T, class Y>
__global__ void __launch_bounds__(128) expert_mma(const Grouped g) {
  __shared__ __align__(16) T tile[kStages][kTileM + kTileN][kPitch];  // rows of x, then of W
  __shared__ int64_t row_of[kTileM];
  Tile at;
  if (!find_tile(g, blockIdx.y, &at)) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = blockIdx.x * int64_t{kTileN}, steps = (g.d + kTileK - 1) / kTileK;
  if (threadIdx.x < kTileM)
    row_of[threadIdx.x] = at.begin + threadIdx.x < at.end ? g.row(at.begin + threadIdx.x) : -1;
  __syncthreads();
  const T* w = static_cast<const T*>(g.w) + at.expert * g.w_stride;

  const auto fetch = [&](int64_t step) {
    if (step < steps) {
      constexpr int kChunks = kTileK / 8;  // of 16 bytes, a row
#pragma unroll
      for (int i = 0; i < (kTileM + kTileN) * kChunks / 128; i++) {
        const int chunk = i * 128 + threadIdx.x, r = chunk / kChunks, c = chunk % kChunks * 8;
        const int64_t k0 = step * kTileK + c;
        const int64_t wanted = r < kTileM ? row_of[r] : column + r - kTileM;
        const bool there = k0 < g.d && (r < kTileM ? wanted >= 0 : wanted < g.n);
        const T* from = r < kTileM ? static_cast<const T*>(g.x) : w;
        if (there) from += wanted * (r < kTileM ? g.x_stride : g.d) + k0;
        copy_async(&tile[step % kStages][r][c], from, there);
      }
    }
    end_copy_group();  // an empty one keeps the count
  };

  float c[2][8][4] = {};  // 16 x 8 of y each
  const int x0 = warp / 2 * 32, w0 = kTileM + warp % 2 * 64;
  for (int step = 0; step < kStages - 1; step++) fetch(step);
  for (int64_t step = 0; step < steps; step++) {
    wait_copy_groups<kStages - 2>();
    __syncthreads();  // this step's tile is there, and the one before is read
    fetch(step + kStages - 1);
    const auto& now = tile[step % kStages];
#pragma unroll
    for (int kk = 0; kk < kTileK; kk += 16) {
      uint32_t a[2][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        load_matrices(a[i], &now[x0 + 16 * i + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
      for (int j = 0; j < 4; j++)
        load_matrices(b[j], &now[w0 + 16 * j + lane / 16 * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
          mma(c[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2],
              b[j / 2][j % 2 * 2 + 1], T{});
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) {
        const int64_t place = at.begin + x0 + 16 * i + v / 2 * 8 + lane / 4;
        const int64_t to = column + w0 - kTileM + 8 * j + lane % 4 * 2 + v % 2;
        if (place < at.end && to < g.n) put<Y>(g, at.expert, place, to, c[i][j][v]);
      }
}

// 64 x 64 of y a block, 4 x 4 a thread.
template <class X, class W, class Y>
__global__ void __launch_bounds__(256) expert_fma(const Grouped g) {
  constexpr int kSide = 64, kDepth = 16;
  static_assert(kSide == kTileM);
  __shared__ __align__(16) float xs[kDepth][kSide + 4], ws[kDepth][kSide + 4];
  Tile at;
  if (!find_tile(g, blockIdx.y, &at)) return;
  const int64_t column = blockIdx.x * int64_t{kSide};
  const int r = threadIdx.x / 4, c = threadIdx.x % 4 * 4;
  const int y0 = threadIdx.x / 16 * 4, y1 = threadIdx.x % 16 * 4;
  const bool has_x = at.begin + r < at.end, has_w = column + r < g.n;
  const X* x = static_cast<const X*>(g.x) + (has_x ? g.row(at.begin + r) : 0) * g.x_stride;
  const W* w = static_cast<const W*>(g.w) + at.expert * g.w_stride + (has_w ? column + r : 0) * g.d;
  float sums[4][4] = {};
  for (int64_t k0 = 0; k0 < g.d; k0 += kDepth) {
    __syncthreads();  // the tiles before are read
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t from = k0 + c + j;
      xs[c + j][r] = has_x && from < g.d ? to_float(x[from]) : 0.0f;
      ws[c + j][r] = has_w && from < g.d ? to_float(w[from]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kDepth; kk++) {
      const Pack<4> a = Pack<4>::load(&xs[kk][y0]), b = Pack<4>::load(&ws[kk][y1]);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a.item[i], b.item[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (at.begin + y0 + i < at.end && column + y1 + j < g.n)
        put<Y>(g, at.expert, at.begin + y0 + i, column + y1 + j, sums[i][j]);
}

template <class X, class W, class Y>
void multiply(Stream& s, const Grouped& g, In x, In weight) {
  constexpr int V = 16 / (sizeof(X) > sizeof(W) ? sizeof(X) : sizeof(W));
  constexpr bool halves = sizeof(X) == 2 && std::is_same_v<X, W>;
  const bool wide = g.d % V == 0 && packs<X>(x, V) && packs<W>(weight, V);
  const auto blocks = [](int64_t n, int64_t size) {
    return static_cast<unsigned>((n + size - 1) / size);
  };
  // At most eight rows an expert on average: each W is read once or twice.
  if (g.places <= kFewRows * g.e && g.e <= 65535) {
    const dim3 grid(blocks(g.n, kFewWarps), static_cast<unsigned>(g.e));
    if (wide)
      expert_few<V, X, W, Y><<<grid, 32 * kFewWarps, 0, s.handle>>>(g);
    else
      expert_few<1, X, W, Y><<<grid, 32 * kFewWarps, 0, s.handle>>>(g);
    return;
  }
  const unsigned tiles = blocks(g.places, kTileM) + static_cast<unsigned>(g.e);
  if constexpr (halves) {
    if (wide && V == 8)
      return expert_mma<X, Y><<<dim3(blocks(g.n, kTileN), tiles), 128, 0, s.handle>>>(g);
  }
  expert_fma<X, W, Y><<<dim3(blocks(g.n, 64), tiles), 256, 0, s.handle>>>(g);
}

// y[i] = sum of weights[i, j] x[place] over j in order. One block a token.
template <class T>
__global__ void combine(const T* x, int64_t x_stride, const int32_t* place, const float* weights,
                        int64_t weights_stride, int64_t rows, int64_t k, int64_t d, T* y,
                        Fault* fault) {
  const int64_t i = blockIdx.x;
  for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
    float sum = 0;
    for (int64_t j = 0; j < k; j++) {
      const int32_t at = place[i * k + j];
      if (at >= rows && c == 0) fault->report(i * k + j, at, rows);
      if (at >= 0 && at < rows)
        sum = fmaf(weights[i * weights_stride + j], to_float(x[at * x_stride + c]), sum);
    }
    from_float(y[i * d + c], sum);
  }
}

}  // namespace

void expert_matmul(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y) {
  const Grouped g{x.view->data, weight.view->data, bias ? bias.data<float>() : nullptr,
                  order.data<int32_t>(), offsets.data<int32_t>(), y.view->data, x.size(0),
                  weight.size(0), weight.size(1), weight.size(2), order.size(0), k, x.stride(),
                  weight.stride(), bias ? bias.stride() : 0,
                  s.fault("order[%lld] is %d, expected 0 to %lld")};
  if (g.places == 0 || g.n == 0) return;
  if (g.places > kFewRows * g.e && expert_tiles(s, x, weight, bias, order, offsets, k, y)) return;
  with_float(y.dtype(), [&](auto yt) {
    using Y = decltype(yt);
    const int64_t size = (g.places * g.n + 255) / 256;
    clear_rest<Y><<<static_cast<unsigned>(size < 264 ? size : 264), 256, 0, s.handle>>>(g);
    if (g.e == 0) return;
    with_float(x.dtype(), [&](auto xt) {
      with_float(weight.dtype(), [&](auto wt) {
        multiply<decltype(xt), decltype(wt), Y>(s, g, x, weight);
      });
    });
  });
}
KERNEL(expert_matmul)

// [a, d], [a], [t, k] -> [t, d]
void expert_combine(Stream& s, In x, In place, In weights, Out y) {
  const int64_t t = weights.size(0), k = weights.size(1), d = x.size(1);
  if (t == 0 || d == 0) return;
  const int threads = d >= 256 ? 256 : static_cast<int>((d + 31) / 32 * 32);
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    combine<T><<<static_cast<unsigned>(t), threads, 0, s.handle>>>(
        x.data<T>(), x.stride(), place.data<int32_t>(), weights.data<float>(), weights.stride(),
        x.size(0), k, d, y.data<T>(), s.fault("place[%lld] is %d, expected less than %lld"));
  });
}
KERNEL(expert_combine)

}  // namespace ss::cuda
