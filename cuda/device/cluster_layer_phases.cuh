// What one block does of a layer of cluster_layers.cuh, phase by phase.
#pragma once
#include "activation.cuh"
#include "cluster_layer.cuh"
#include "dependent.cuh"
#include "mamba_step.cuh"
#include "mamba_step_update.cuh"
#include "mma.cuh"

namespace ss::cuda {

// A thread's coefficients, of B or C, in the order of its states.
template <class S, class T>
__device__ __forceinline__ Share<S> coefficients(const T* row, int part) {
  const Pack<4> a = Pack<4>::load(row + Share<S>::quad(0, part) * 4);
  const Pack<4> b = Pack<4>::load(row + Share<S>::quad(1, part) * 4);
  return {a.item[0], a.item[1], a.item[2], a.item[3], b.item[0], b.item[1], b.item[2], b.item[3]};
}

// What a block's threads hold of a layer, and its steps in their order. Sequences beyond the cluster's
// own are not read anywhere: they are columns of products that nobody looks at.
template <class T, class S, int Model, int Tiles>
struct ClusterStep {
  using Size = ClusterSizes<Model, Tiles>;
  static constexpr int m = Size::m, d = Size::d, r = Size::r, k = Size::k;
  static constexpr int channels = Size::channels, out_rows = Size::out_rows;
  static constexpr int kOut = out_rows / 8;  // of a sequence's columns that a thread adds up
  static constexpr int kRankSteps = r / 16, kUnits = channels / 32;
  static constexpr int kTileRows16 = k / 16;  // of x_proj
  static_assert(2 * kTileRows16 <= Size::warps && 2 * (channels / 16) == Size::warps);

  const ClusterLayers<T>& s;
  ClusterMemory<T, Size>& shared;
  ClusterRing<Size>& ring;
  const int first, rows;  // of the cluster
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  const int block = static_cast<int>(cluster_rank());
  const int channel = block * channels;  // the first
  // Of the residual: 8 threads a sequence.
  const int sum_row = thread / 8, sum_at = thread % 8 * kOut, sum_column = block * out_rows + sum_at;
  const bool sums = sum_row < rows;

  float residual[kOut], norm[kOut];
  float4 conv_weight[4], conv_bias;
  uint4 x_proj[kUnits][2];
  uint2 dt_weight[kRankSteps][2];
  Share<S> A;
  float dt_bias, D;

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < kOut; i++) {
      residual[i] = 0.0f;
      if (!sums) continue;
      const int64_t at = static_cast<int64_t>(first + sum_row) * m + sum_column + i;
      residual[i] = s.residual[at];
      if (s.x) residual[i] += to_float(s.x[at]);
    }
  }

  // What comes of each kind of meeting, in bytes; those of which nothing comes are not waited for.
  __device__ __forceinline__ int own_rows() const {
    return (rows - block + kClusterBlocks - 1) / kClusterBlocks;
  }
  __device__ __forceinline__ int expected(Meeting meeting) const {
    constexpr int kOthers = kClusterBlocks - 1, kSize = int{sizeof(T)};
    switch (meeting) {
      case kSquares: return rows * kClusterBlocks * int{sizeof(float)};
      case kNormed: return kOthers * rows * Size::norm_pitch * kSize;
      case kShares: return own_rows() * kOthers * k * int{sizeof(float)};
      case kDbc: return rows * k * kSize;
      default: return kOthers * rows * Size::y_pitch * kSize;
    }
  }
  __device__ __forceinline__ void expect(Meeting meeting) {
    if (const int bytes = expected(meeting)) arrive_expecting(&shared.met[meeting], bytes);
  }
  // Of layer i, by all threads.
  __device__ __forceinline__ void meet(Meeting meeting, int i) {
    if (expected(meeting) == 0) return;
    wait_barrier(&shared.met[meeting], i & 1);
    if (thread == 0) expect(meeting);
  }
  // Rows of what this block has go to all others: a copy or two a warp, which starts one after the other.
  __device__ __forceinline__ void send_rows(T* own, int bytes, Meeting meeting) {
    if (lane != 0) return;
    for (int i = warp + 1; i < kClusterBlocks; i += Size::warps)
      send(own, own, bytes, &shared.met[meeting], static_cast<unsigned>((block + i) % kClusterBlocks));
  }

  // The residual's sum of squares, of each block's columns to all.
  __device__ __forceinline__ void square(const ClusterLayer<T>& l) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kOut; i++) {
      norm[i] = l.norm[sum_column + i];
      squares = fmaf(residual[i], residual[i], squares);
    }
#pragma unroll
    for (int i = 1; i < 8; i *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, i);
    if (!sums) return;
#pragma unroll
    for (unsigned i = 0; i < 2; i++)
      send(&shared.squares[sum_row][block], squares, &shared.met[kSquares], thread % 8 * 2 + i);
    float* sum = l.sum + static_cast<int64_t>(first + sum_row) * m + sum_column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2)
      *reinterpret_cast<float2*>(sum + i) = {residual[i], residual[i + 1]};
  }
  __device__ __forceinline__ void normalize(const ClusterLayer<T>& l) {
    if (sums) {
      float all = 0.0f;
#pragma unroll
      for (int i = 0; i < kClusterBlocks; i++) all += shared.squares[sum_row][i];
      const float scale = rsqrtf(all / static_cast<float>(m) + s.eps);
      T* out = l.normed + static_cast<int64_t>(first + sum_row) * m + sum_column;
#pragma unroll
      for (int i = 0; i < kOut; i += 2) {
        const uint32_t bits =
            pair_bits(residual[i] * (scale * norm[i]), residual[i + 1] * (scale * norm[i + 1]), T{});
        *reinterpret_cast<uint32_t*>(&shared.normed[block][sum_row][sum_at + i]) = bits;
        *reinterpret_cast<uint32_t*>(out + i) = bits;
      }
      show_to_copies();
    }
    sync_cluster_step<Size>();
    send_rows(&shared.normed[block][0][0], rows * Size::norm_pitch * int{sizeof(T)}, kNormed);
  }

  // c += 16 rows of weights, `weights` in a stage, times as many columns of rows that lie in parts.
  template <int Pitch>
  __device__ __forceinline__ void multiply(float (&c)[Tiles][4], const char* weights,
                                           const T (&act)[kClusterBlocks][Size::rows][Pitch],
                                           int column) {
    constexpr int kSteps = Size::columns / 16, kPart = (Pitch - 8) / 8;  // chunks of 8
    uint32_t a[kSteps][4], b[Tiles][kSteps / 2][4];
    const int swizzle = lane % 8, chunk = lane / 16;
    const char* row = weights + lane % 16 * (2 * Size::columns);
#pragma unroll
    for (int i = 0; i < kSteps; i++) load_matrices(a[i], row + ((2 * i + chunk) ^ swizzle) * 16);
#pragma unroll
    for (int i = 0; i < kSteps / 2; i++) {
      const int at = column / 8 + i * 4 + lane / 8;
      const T* part = &act[at / kPart][lane % 8][at % kPart * 8];
#pragma unroll
      for (int j = 0; j < Tiles; j++) load_matrices(b[j][i], part + 8 * j * Pitch);
    }
#pragma unroll
    for (int i = 0; i < kSteps; i++)
#pragma unroll
      for (int j = 0; j < Tiles; j++)
        mma(c[j], a[i][0], a[i][1], a[i][2], a[i][3], b[j][i / 2][i % 2 * 2],
            b[j][i / 2][i % 2 * 2 + 1], T{});
    // Not before what was read is used: until then it may not have been read yet.
    ring.give_back();
  }

  // What the convolution needs, ahead of it.
  __device__ __forceinline__ void load_conv(const ClusterLayer<T>& l) {
    const int c = channel + thread % (channels / 4) * 4;
    const auto* weight = reinterpret_cast<const float4*>(l.conv_weight) + c;
#pragma unroll
    for (int i = 0; i < 4; i++) conv_weight[i] = weight[i];
    conv_bias = l.conv_bias ? *reinterpret_cast<const float4*>(l.conv_bias + c) : float4{};
  }
  __device__ __forceinline__ void project_in() {
    float c[Tiles][4] = {};
#pragma unroll 1
    for (int i = 0; i < Size::in_stages; i++) {
      const char* stage = ring.wait();
      multiply(c, stage + warp * 16 * (2 * Size::columns), shared.normed, i * Size::columns);
    }
#pragma unroll
    for (int j = 0; j < Tiles; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        from_float(shared.early.xz[8 * j + 2 * q + i % 2][warp * 16 + g + i / 2 * 8], c[j][i]);
  }
  __device__ __forceinline__ void load_x_proj(const ClusterLayer<T>& l) {
    if (warp >= 2 * kTileRows16) return;
    const T* row = l.x_proj + (warp % kTileRows16 * 16 + g) * d + channel + q * 8;
#pragma unroll
    for (int i = 0; i < kUnits; i++) {
      x_proj[i][0] = *reinterpret_cast<const uint4*>(row + i * 32);
      x_proj[i][1] = *reinterpret_cast<const uint4*>(row + 8 * d + i * 32);
    }
  }

  // The convolution of this block's channels, 4 of a thread; x and z to memory.
  __device__ __forceinline__ void convolve(const ClusterLayer<T>& l) {
    constexpr int kGroups = channels / 4;
    const int c = thread % kGroups * 4;
    const float bias[4] = {conv_bias.x, conv_bias.y, conv_bias.z, conv_bias.w};
#pragma unroll 1
    for (int begin = 0; begin < rows; begin += Size::conv_rows) {
      const char* stage = ring.wait();
#pragma unroll
      for (int i = 0; i < Size::conv_rows && i < Size::rows; i += 16) {
        const int row = begin + i + thread / kGroups;
        if (row >= rows) continue;
        const int slot = shared.slot[row];
        const int64_t at = first + row;
        const T* past = reinterpret_cast<const T*>(stage + (row - begin) * Size::conv_bytes) + 3 * c;
        Tap<T, 4> tap;
        tap.load(&shared.early.xz[row][c], slot >= 0 ? past : nullptr);
        const auto z = *reinterpret_cast<const Raw<T, 4>*>(&shared.early.xz[row][channels + c]);
        const Raw<T, 4> u = tap.convolve(conv_weight, bias);
        *reinterpret_cast<Raw<T, 4>*>(&shared.early.u[row][c]) = u;
        *reinterpret_cast<Raw<T, 4>*>(l.u + at * d + channel + c) = u;
        *reinterpret_cast<Raw<T, 4>*>(l.xz + at * 2 * d + channel + c) = tap.x;
        *reinterpret_cast<Raw<T, 4>*>(l.xz + at * 2 * d + d + channel + c) = z;
        if (slot >= 0)
          tap.store(l.conv_state + (static_cast<int64_t>(slot) * d + channel + c) * (kTaps - 1));
      }
      ring.give_back();
    }
  }

  // This block's shares of dbc go to those who add up a sequence's; its own are there already.
  __device__ __forceinline__ void share() {
    if (warp >= 2 * kTileRows16) return;
#pragma unroll
    for (int i = 0; i < (Tiles + 1) / 2; i++) {
      const int j = warp / kTileRows16 + 2 * i;
      if (j >= Tiles) break;
      float c[2][4] = {};
#pragma unroll
      for (int unit = 0; unit < kUnits; unit++) {
        const uint4 b = *reinterpret_cast<const uint4*>(&shared.early.u[8 * j + g][unit * 32 + q * 8]);
        const uint4 low = x_proj[unit][0], high = x_proj[unit][1];
        mma(c[0], low.x, high.x, low.y, high.y, b.x, b.y, T{});
        mma(c[1], low.z, high.z, low.w, high.w, b.z, b.w, T{});
      }
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int row = 8 * j + 2 * q + e % 2, column = warp % kTileRows16 * 16 + g + e / 2 * 8;
        float* to = row % kClusterBlocks == block ? shared.early.shares[row / kClusterBlocks][block]
                                                  : shared.share[row];
        to[column] = c[0][e] + c[1][e];
      }
    }
    show_to_copies();
  }
  __device__ __forceinline__ void send_shares() {
    if (lane != 0) return;
    for (int row = warp; row < rows; row += Size::warps)
      if (const int to = row % kClusterBlocks; to != block)
        send(&shared.early.shares[row / kClusterBlocks][block][0], &shared.share[row][0],
             k * int{sizeof(float)}, &shared.met[kShares], static_cast<unsigned>(to));
  }
  __device__ __forceinline__ void load_dt(const ClusterLayer<T>& l) {
    const T* row = l.dt_weight + (channel + warp % (channels / 16) * 16 + g) * r + q * 4;
#pragma unroll
    for (int i = 0; i < kRankSteps; i++) {
      dt_weight[i][0] = *reinterpret_cast<const uint2*>(row + i * 16);
      dt_weight[i][1] = *reinterpret_cast<const uint2*>(row + 8 * r + i * 16);
    }
    const int c = channel + thread % (2 * channels) / 2, part = thread % 2;
    A = Share<S>::of(reinterpret_cast<const float4*>(l.A) + c * (kStates / 4), part);
    dt_bias = l.dt_bias[c], D = l.D[c];
  }
  // dbc's rows that are this block's, four columns a thread, in a fixed order. Each sum is made as often
  // as there are threads, and sent to as few blocks by each.
  __device__ __forceinline__ void add_shares(const ClusterLayer<T>& l) {
    constexpr int kItems = Size::owned * k / 4;
    constexpr int kCopies = 16 * kItems <= Size::threads ? 16 : 8 * kItems <= Size::threads ? 8 : 4;
    static_assert(kCopies * kItems <= Size::threads);
    const int item = thread % kItems, copy = thread / kItems;
    const int own = item / (k / 4), column = item % (k / 4) * 4, row = own * kClusterBlocks + block;
    if (copy >= kCopies || row >= rows) return;
    float4 all{};
#pragma unroll
    for (int i = 0; i < kClusterBlocks; i++) {
      const float4 some = *reinterpret_cast<const float4*>(&shared.early.shares[own][i][column]);
      all.x += some.x, all.y += some.y, all.z += some.z, all.w += some.w;
    }
    const uint2 bits = {pair_bits(all.x, all.y, T{}), pair_bits(all.z, all.w, T{})};
#pragma unroll
    for (int i = 0; i < kClusterBlocks / kCopies; i++)
      send(&shared.dbc[row][column], bits, &shared.met[kDbc],
           static_cast<unsigned>(copy * (kClusterBlocks / kCopies) + i));
    if (copy == 0)
      *reinterpret_cast<uint2*>(l.dbc + static_cast<int64_t>(first + row) * k + column) = bits;
  }

  // Delta before its bias, where x was.
  __device__ __forceinline__ void project_dt() {
    constexpr int kOf = channels / 16;
#pragma unroll
    for (int i = 0; i < (Tiles + 1) / 2; i++) {
      const int j = warp / kOf + 2 * i;
      if (j >= Tiles) break;
      float c[4] = {};
#pragma unroll
      for (int step = 0; step < kRankSteps; step++) {
        const uint2 b = *reinterpret_cast<const uint2*>(&shared.dbc[8 * j + g][step * 16 + q * 4]);
        mma(c, dt_weight[step][0].x, dt_weight[step][1].x, dt_weight[step][0].y, dt_weight[step][1].y,
            b.x, b.y, T{});
      }
#pragma unroll
      for (int e = 0; e < 4; e++)
        from_float(shared.early.xz[8 * j + 2 * q + e % 2][warp % kOf * 16 + g + e / 2 * 8], c[e]);
    }
    sync_cluster_step<Size>();
  }
  // States, 8 of a channel's 16 a thread; gated y to all blocks.
  __device__ __forceinline__ void advance(const ClusterLayer<T>& l) {
    constexpr int kRows = Size::template state_rows<S>, kTogether = kRows % 4 == 0 ? 2 : 1;
    const int c = thread % (2 * channels) / 2, part = thread % 2, odd = thread / (2 * channels);
#pragma unroll
    for (int i = 0; i < 8; i++) A.item[i] *= kLog2e;
#pragma unroll 1
    for (int begin = 0; begin < rows; begin += kRows) {
      const S* stage = reinterpret_cast<const S*>(ring.wait());
#pragma unroll 1
      for (int i = odd; i < kRows && begin + i - odd < rows; i += 2 * kTogether) {
        Kept<S> kept[kTogether];
        int slot[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; j++) {
          const int row = begin + i + 2 * j;
          slot[j] = row < rows ? shared.slot[row] : -1;
          kept[j] = {};
          if (slot[j] >= 0)
            kept[j] = Kept<S>::load(stage + ((i + 2 * j) * channels + c) * kStates, part);
        }
#pragma unroll
        for (int j = 0; j < kTogether; j++) {
          const int row = begin + i + 2 * j;
          Share<S> h = kept[j].open();
          const auto B = coefficients<S>(&shared.dbc[row][r], part);
          const auto C = coefficients<S>(&shared.dbc[row][r + kStates], part);
          const float now = to_float(shared.early.u[row][c]);
          const float dt = softplus(to_float(shared.early.xz[row][c]) + dt_bias), dtu = dt * now;
          float y[2] = {};
#pragma unroll
          for (int e = 0; e < 8; e++) {
            h.item[e] = fmaf(exp2_approx(dt * A.item[e]), h.item[e], dtu * B.item[e]);
            y[e % 2] = fmaf(h.item[e], C.item[e], y[e % 2]);
          }
          float sum = y[0] + y[1];
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          Dice dice{};
          if constexpr (sizeof(S) == 2) dice = Dice::of(sum, channel + c, part);
          if (slot[j] >= 0)
            keep(static_cast<S*>(l.scan_state) +
                     (static_cast<int64_t>(slot[j]) * d + channel + c) * kStates,
                 part, h, dice);
          if (part == 0 && row < rows) {
            T gated;
            from_float(gated, fmaf(D, now, sum) * silu(to_float(shared.early.xz[row][channels + c])));
            shared.y[block][row][c] = gated;
            l.gated[static_cast<int64_t>(first + row) * d + channel + c] = gated;
          }
        }
      }
      ring.give_back();
      show_to_copies();
      sync_cluster_step<Size>();
      send_rows(&shared.y[block][begin][0],
                (rows - begin < kRows ? rows - begin : kRows) * Size::y_pitch * int{sizeof(T)}, kGated);
    }
  }

  // This block's rows of out_proj: what the layer adds to the residual.
  __device__ __forceinline__ void project_out(const ClusterLayer<T>& l) {
    constexpr int kOf = out_rows / 16;
    const int box = warp / kOf;
    float c[Tiles][4] = {};
#pragma unroll 1
    for (int i = 0; i < Size::out_stages; i++) {
      const char* stage = ring.wait();
      multiply(c, stage + (box * out_rows + warp % kOf * 16) * (2 * Size::columns), shared.y,
               (i * Size::boxes + box) * Size::columns);
    }
#pragma unroll
    for (int j = 0; j < Tiles; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        shared.sums[box][8 * j + 2 * q + i % 2][warp % kOf * 16 + g + i / 2 * 8] = c[j][i];
    sync_cluster_step<Size>();
    if (!sums) return;
    T* y = l.y + static_cast<int64_t>(first + sum_row) * m + sum_column;
#pragma unroll
    for (int i = 0; i < kOut; i += 2) {
      float2 all{};
#pragma unroll
      for (int j = 0; j < Size::boxes; j++) {
        const float2 some = *reinterpret_cast<const float2*>(&shared.sums[j][sum_row][sum_at + i]);
        all.x += some.x, all.y += some.y;
      }
      const uint32_t bits = pair_bits(all.x, all.y, T{});
      *reinterpret_cast<uint32_t*>(y + i) = bits;
      const float2 add = pair_floats(bits, T{});
      residual[i] += add.x, residual[i + 1] += add.y;
    }
  }
};

}  // namespace ss::cuda
