// A block's way through a sequence: tiles of kSteps tokens by kWidth channels, three phases each.
//   enter   one thread an item of (token, channels): dt and dt u into shared memory; B and C there as f32
//   scan    kLanes threads a channel, kStates states each in registers: h and its share of y
//   leave   the item's thread again: sums the shares, adds D u, gates with silu(z), writes y
// Dense memory accesses of 16 bytes in the first and last; the next tile is on its way meanwhile.
#pragma once
#include "activation.cuh"
#include "pack.cuh"
#include "sequences.cuh"
#include "words.cuh"

namespace ss::cuda {

template <class T>
struct Scan {
  const T *u, *delta, *z;  // [t, d]; z may be null
  T* y;                    // [t, d]
  int64_t u_stride, delta_stride, z_stride, y_stride;
  const float *A, *D, *delta_bias;  // [d, n], [d], [d]; the last two may be null
  int64_t A_stride;
  const void *B, *C;  // T [t, g, n], or constant f32 [d, n]
  int64_t B_stride, C_stride;
  bool B_constant, C_constant;
  float* state;  // [p, d, n]
  int64_t state_stride;
  Sequences sequences;
  int64_t d, n, group_channels, group_blocks, blocks;  // blocks: of channels, none across groups
  bool delta_softplus;
  bool wide;  // scan_tokens: whether fours are aligned
};

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// A channel's states on Lanes threads of States each, Channels channels a thread.
template <class T_, int States, int Lanes, int Channels, int Steps, bool Fast, int Threads = 128,
          int Poly = 0>
struct Plan {
  using T = T_;
  static constexpr int kStates = States, kLanes = Lanes, kChannels = Channels, kSteps = Steps;
  static constexpr int kThreads = Threads, kPoly = Poly;
  // All accesses aligned, B and C given per token; else anything.
  static constexpr bool kFast = Fast;

  static constexpr int kN = States * Lanes;                   // states of a channel, padded
  static constexpr int kWidth = Threads / Lanes * Channels;   // channels of a block
  static constexpr int kItem = smaller(8, Steps * kWidth / Threads);  // channels of an item
  static constexpr int kColumns = kWidth / kItem, kRows = Threads / kColumns;
  static constexpr int kItems = Steps / kRows;  // of a thread
  static_assert(kItems * kRows == Steps && kWidth >= 8);

  // B and C of a tile, in pieces of 16 bytes.
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  static constexpr int kPieces = (Steps * 2 * kN / kPiece + Threads - 1) / Threads;
  static constexpr bool kAhead = kPieces <= 4;  // more would cost too many registers

  // Shared memory, in floats. Padding and `place` keep all phases free of bank conflicts.
  static constexpr int kRow = Steps + 4;               // of dt, one channel's
  static constexpr int kShares = kWidth * Lanes + 4;   // of y, one token's
  static constexpr int kBytes =
      4 * (2 * kWidth * kRow + Steps * kShares + Steps * 2 * kN + 2 * kWidth);

  // Where channel (column, k), item k of a column, lies in shared memory; and back.
  static constexpr int kSpan = kColumns < 8 ? 8 : kColumns, kTurn = kSpan / kColumns;
  __device__ static int place(int column, int k) {
    return k / kTurn * kSpan + column * kTurn + k % kTurn;
  }
  __device__ static int channel(int place) {
    return place % kSpan / kTurn * kItem + place / kSpan * kTurn + place % kTurn;
  }
};

// 2^x on the other pipes, for a share of the exponentials.
__device__ __forceinline__ float exp2_poly(float x) {
  x = fminf(fmaxf(x, -126.0f), 127.0f);
  const float shifted = x + 0x1.8p23f, r = x - (shifted - 0x1.8p23f);
  float p = fmaf(r, 0x1.5ca92cp-10f, 0x1.3cdafep-7f);
  p = fmaf(p, r, 0x1.c6b3a8p-5f);
  p = fmaf(p, r, 0x1.ebf9f2p-3f);
  p = fmaf(p, r, 0x1.62e43p-1f);
  p = fmaf(p, r, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

template <class P>
class ScanBlock {
  using T = typename P::T;
  struct Items {  // of a thread, in one tile
    Words<T, P::kItem> item[P::kItems];
  };
  struct Pieces {
    Words<T, P::kPiece> piece[P::kPieces];
  };

  const Scan<T>& s;
  const int64_t first, group;  // channel, group of B and C
  const int width;             // channels that there are, from `first` on
  const int column, row;       // of this thread's first item; the others are kRows below
  float *dt, *dtu, *shares, *coefficients, *skip, *bias;

 public:
  __device__ ScanBlock(const Scan<T>& s, int64_t block, float* memory)
      : s(s),
        first(block / s.group_blocks * s.group_channels + block % s.group_blocks * P::kWidth),
        group(block / s.group_blocks),
        width(count((group + 1) * s.group_channels - first, P::kWidth)),
        column(threadIdx.x % P::kColumns),
        row(threadIdx.x / P::kColumns),
        dt(memory),
        dtu(dt + P::kWidth * P::kRow),
        shares(dtu + P::kWidth * P::kRow),
        coefficients(shares + P::kSteps * P::kShares),
        skip(coefficients + P::kSteps * 2 * P::kN),
        bias(skip + P::kWidth) {
    for (int c = threadIdx.x; c < P::kWidth; c += P::kThreads) {
      skip[c] = s.D && c < width ? s.D[first + c] : 0.0f;
      bias[c] = s.delta_bias && c < width ? s.delta_bias[first + c] : 0.0f;
    }
  }

  // `from` and `to`: the channels' states before and after, in rows of n, or null.
  __device__ void run(int64_t begin, int64_t end, const float* from, float* to) {
    Lane lane(*this, from);
    // Where this thread's first item of the tile lies.
    const int64_t above = begin + row, beside = first + column * P::kItem;
    const T* u_at = s.u + above * s.u_stride + beside;
    const T* delta_at = s.delta + above * s.delta_stride + beside;
    const T* z_at = s.z + above * s.z_stride + beside;
    T* y_at = s.y + above * s.y_stride + beside;

    int left = static_cast<int>(end - begin);  // tokens, from this tile on
    Items u = load(u_at, s.u_stride, left), delta = load(delta_at, s.delta_stride, left);
    Pieces pieces;
    if constexpr (P::kAhead) pieces = load_coefficients(begin, left);
    __syncthreads();  // skip and bias are there
    for (int64_t t = begin; left > 0; t += P::kSteps, left -= P::kSteps) {
      if constexpr (!P::kAhead) pieces = load_coefficients(t, left);
      store_coefficients(pieces);
      enter(delta, u, left);
      __syncthreads();
      Items z{};
      if (s.z) z = load(z_at, s.z_stride, left);
      delta_at += P::kSteps * s.delta_stride;
      u_at += P::kSteps * s.u_stride;
      delta = load(delta_at, s.delta_stride, left - P::kSteps);
      const Items next_u = load(u_at, s.u_stride, left - P::kSteps);
      if constexpr (P::kAhead) pieces = load_coefficients(t + P::kSteps, left - P::kSteps);
      lane.advance(*this, left < P::kSteps ? left : P::kSteps);
      __syncthreads();
      leave(u, z, y_at, left);
      z_at += P::kSteps * s.z_stride;
      y_at += P::kSteps * s.y_stride;
      u = next_u;
    }
    if (to) lane.store(*this, to);
  }

 private:
  __device__ static int count(int64_t there, int most) {
    return there < most ? static_cast<int>(there) : most;
  }

  // This thread's items; zeros beyond the tokens and the channels.
  __device__ Items load(const T* at, int64_t stride, int left) const {
    Items out{};
    const int channels = width - column * P::kItem;
    if (channels <= 0) return out;
#pragma unroll
    for (int i = 0; i < P::kItems; i++) {
      if (row + i * P::kRows >= left) break;
      const T* from = at + i * P::kRows * stride;
      if constexpr (P::kFast)
        out.item[i] = Words<T, P::kItem>::load(from);
      else
        out.item[i] = Words<T, P::kItem>::load_some(from, channels);
    }
    return out;
  }

  __device__ Pieces load_coefficients(int64_t t, int left) const {
    Pieces out{};
    constexpr int of_row = 2 * P::kN / P::kPiece;
#pragma unroll
    for (int i = 0; i < P::kPieces; i++) {
      const int piece = i * P::kThreads + threadIdx.x, row = piece / of_row;
      const bool is_C = piece % of_row >= of_row / 2;
      const int n = piece % (of_row / 2) * P::kPiece, there = static_cast<int>(s.n) - n;
      if (row >= P::kSteps || row >= left || there <= 0) continue;
      if (!P::kFast && (is_C ? s.C_constant : s.B_constant)) continue;
      const T* from = static_cast<const T*>(is_C ? s.C : s.B) +
                      (t + row) * (is_C ? s.C_stride : s.B_stride) + group * s.n + n;
      if constexpr (P::kFast)
        out.piece[i] = Words<T, P::kPiece>::load(from);
      else
        out.piece[i] = Words<T, P::kPiece>::load_some(from, there);
    }
    return out;
  }

  __device__ void store_coefficients(const Pieces& pieces) {
#pragma unroll
    for (int i = 0; i < P::kPieces; i++) {
      const int piece = i * P::kThreads + threadIdx.x;
      if (piece * P::kPiece >= P::kSteps * 2 * P::kN) continue;
      float4* to = reinterpret_cast<float4*>(coefficients + piece * P::kPiece);
      const auto& x = pieces.piece[i];
#pragma unroll
      for (int k = 0; k < P::kPiece; k += 4) to[k / 4] = {x[k], x[k + 1], x[k + 2], x[k + 3]};
    }
  }

  __device__ void enter(const Items& delta, const Items& u, int left) {
    const Pack<P::kItem> offset = Pack<P::kItem>::load(bias + column * P::kItem);
#pragma unroll
    for (int i = 0; i < P::kItems; i++) {
      const bool inside = row + i * P::kRows < left;  // a step with dt = 0 changes nothing
#pragma unroll
      for (int k = 0; k < P::kItem; k++) {
        float x = delta.item[i][k] + offset.item[k];
        if (s.delta_softplus) x = softplus(x);
        if (!inside) x = 0.0f;
        const int at = P::place(column, k) * P::kRow + row + i * P::kRows;
        dt[at] = x;
        dtu[at] = x * u.item[i][k];
      }
    }
  }

  __device__ void leave(const Items& u, const Items& z, T* at, int left) {
    constexpr int quad = smaller(4, P::kLanes);
    const Pack<P::kItem> D = Pack<P::kItem>::load(skip + column * P::kItem);
    const int channels = width - column * P::kItem;
#pragma unroll
    for (int i = 0; i < P::kItems; i++) {
      Pack<P::kItem> out;
#pragma unroll
      for (int k = 0; k < P::kItem; k++) {
        const float* from = shares + (row + i * P::kRows) * P::kShares + P::place(column, k) * P::kLanes;
        float sum = D.item[k] * u.item[i][k];
#pragma unroll
        for (int p = 0; p < P::kLanes; p += quad) {
          const Pack<quad> some = Pack<quad>::load(from + p);
#pragma unroll
          for (int q = 0; q < quad; q++) sum += some.item[q];
        }
        out.item[k] = sum;
      }
      if (s.z) {
#pragma unroll
        for (int k = 0; k < P::kItem; k++) out.item[k] *= silu(z.item[i][k]);
      }
      if (row + i * P::kRows >= left || channels <= 0) break;
      T* to = at + i * P::kRows * s.y_stride;
      if constexpr (P::kFast) {
        out.store(to);
      } else {
#pragma unroll
        for (int k = 0; k < P::kItem; k++)
          if (k < channels) from_float(to[k], out.item[k]);
      }
    }
  }

  // What a thread holds of its channels during the scan: states n(0) to n(kStates - 1).
  struct Lane {
    static constexpr int kQuad = smaller(4, P::kStates);
    static constexpr int kApart = P::kWidth / P::kChannels;  // a thread's channels
    int part, slot;  // which of the kLanes, and of the kWidth / kChannels
    float A[P::kChannels][P::kStates], h[P::kChannels][P::kStates];
    float B[P::kChannels][P::kStates], C[P::kChannels][P::kStates];  // where constant

    // Neighbouring threads share B and C, next neighbours share dt: then hardware can serve more
    // of a warp at once.
    __device__ Lane(const ScanBlock& b, const float* from) {
      constexpr int slots = 32 / P::kLanes;  // of a warp
      const int lane = threadIdx.x % 32, high = lane / 4;
      if constexpr (slots == 1) {
        part = lane, slot = 0;
      } else if constexpr (slots == 32) {
        part = 0, slot = lane;
      } else {
        part = lane / 2 % 2 + high / (slots / 2) * 2;
        slot = lane % 2 + high % (slots / 2) * 2;
      }
      slot += threadIdx.x / 32 * slots;
#pragma unroll
      for (int k = 0; k < P::kChannels; k++)
#pragma unroll
        for (int i = 0; i < P::kStates; i++) {
          const int64_t c = channel(b, k), j = n(i);
          const bool there = c < b.first + b.width && j < b.s.n;
          A[k][i] = there ? b.s.A[c * b.s.A_stride + j] * kLog2e : 0.0f;
          h[k][i] = there && from ? from[c * b.s.n + j] : 0.0f;
          if constexpr (!P::kFast) {
            B[k][i] = there && b.s.B_constant
                          ? static_cast<const float*>(b.s.B)[c * b.s.B_stride + j] : 0.0f;
            C[k][i] = there && b.s.C_constant
                          ? static_cast<const float*>(b.s.C)[c * b.s.C_stride + j] : 0.0f;
          }
        }
    }
    __device__ int place(int k) const { return k * kApart + slot; }
    __device__ int64_t channel(const ScanBlock& b, int k) const {
      return b.first + P::channel(place(k));
    }
    __device__ int n(int i) const { return (i / kQuad * P::kLanes + part) * kQuad + i % kQuad; }

    __device__ void store(const ScanBlock& b, float* to) const {
#pragma unroll
      for (int k = 0; k < P::kChannels; k++)
#pragma unroll
        for (int i = 0; i < P::kStates; i++) {
          const int64_t c = channel(b, k);
          if (c < b.first + b.width && n(i) < b.s.n) to[c * b.s.n + n(i)] = h[k][i];
        }
    }

    __device__ void advance(ScanBlock& b, int steps) {
      constexpr int turn = 8;  // steps; those beyond the end have dt = 0
      const float* dt_row = b.dt + place(0) * P::kRow;
      const float* coefficient_row = b.coefficients + part * kQuad;
      float* share_row = b.shares + place(0) * P::kLanes + part;
#pragma unroll 1
      for (int t = 0; t < steps; t += turn) {
        float dt[P::kChannels][turn], dtu[P::kChannels][turn];
#pragma unroll
        for (int k = 0; k < P::kChannels; k++)
#pragma unroll
          for (int j = 0; j < turn; j += 4) {
            const float* from = dt_row + k * kApart * P::kRow + j;
            const Pack<4> some = Pack<4>::load(from);
            const Pack<4> some_u = Pack<4>::load(from + P::kWidth * P::kRow);
#pragma unroll
            for (int q = 0; q < 4; q++) dt[k][j + q] = some.item[q], dtu[k][j + q] = some_u.item[q];
          }
#pragma unroll
        for (int j = 0; j < turn; j++) {
          const float* row = coefficient_row + j * 2 * P::kN;
          float y[P::kChannels] = {};
#pragma unroll
          for (int i = 0; i < P::kStates; i += kQuad) {
            const Pack<kQuad> Bs = Pack<kQuad>::load(row + i * P::kLanes);
            const Pack<kQuad> Cs = Pack<kQuad>::load(row + P::kN + i * P::kLanes);
#pragma unroll
            for (int k = 0; k < P::kChannels; k++)
#pragma unroll
              for (int q = 0; q < kQuad; q++) {
                const float x = dt[k][j] * A[k][i + q];
                const bool poly =
                    P::kPoly && (j * P::kStates + i + q) % (16 / (P::kPoly | !P::kPoly)) == 3;
                const float e = poly ? exp2_poly(x) : exp2_approx(x);
                const float B_q = !P::kFast && b.s.B_constant ? B[k][i + q] : Bs.item[q];
                const float C_q = !P::kFast && b.s.C_constant ? C[k][i + q] : Cs.item[q];
                h[k][i + q] = fmaf(e, h[k][i + q], dtu[k][j] * B_q);
                y[k] = fmaf(h[k][i + q], C_q, y[k]);
              }
          }
#pragma unroll
          for (int k = 0; k < P::kChannels; k++)
            share_row[j * P::kShares + k * kApart * P::kLanes] = y[k];
        }
        dt_row += turn;
        coefficient_row += turn * 2 * P::kN;
        share_row += turn * P::kShares;
      }
    }
  };
};

template <class P, int MinBlocks = 4>
__global__ void __launch_bounds__(P::kThreads, MinBlocks)
    scan_sequences(const __grid_constant__ Scan<typename P::T> s) {
  extern __shared__ float4 memory[];
  s.sequences.check();
  const auto piece = s.sequences.piece(blockIdx.x / s.blocks, s.sequences.tokens + 1);
  if (piece.begin >= piece.end) return;
  const int64_t slot = s.sequences.slot(piece.sequence);
  float* state = slot < 0 ? nullptr : s.state + slot * s.state_stride;
  ScanBlock<P> block(s, blockIdx.x % s.blocks, reinterpret_cast<float*>(memory));
  block.run(piece.begin, piece.end, state, state);
}

}  // namespace ss::cuda
