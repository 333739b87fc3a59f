// An edge thread: brings tiles into shared memory and takes results out of it, 4 tokens by kItem
// channels of each. What it uses was asked for a tile earlier.
#pragma once
#include <type_traits>

#include "scan_plan.cuh"

namespace ss::cuda {

template <class P>
class Edge {
  using T = typename P::T;
  // Of 32 bits where the plan may be picky: then an address is one multiplication.
  using Stride = std::conditional_t<P::kFast, int, int64_t>;
  static constexpr int kItem = P::kItem, kSize = sizeof(T);
  // Of a token's row of pieces, the first half is B, the second C.
  static constexpr int kOfRow = 2 * P::kN / P::kPiece;
  struct Items {
    Words<T, kItem> token[4];
  };
  using Piece = Words<T, P::kPiece>;  // of B or C
  static constexpr bool kAhead = P::kPieces <= 4;  // more would cost too many registers

  const Scan<T>& s;
  const int64_t begin, group;
  const int tokens;                // from `begin` on
  const int index, column, above;  // this thread; its channels; the tile's tokens before its own
  const int channels;              // that there are of its kItem; may be negative
  const T *u_at, *delta_at, *z_at;  // its channels at `begin`
  T* y_at;
  float D[kItem], bias[kItem];
  Items u, delta;      // of the tile that enters next
  Piece pieces[kAhead ? P::kPieces : 1];  // of its B and C
  Items u_leaving, z;  // of the tile that leaves next: u comes from the cache, registers are short

 public:
  __device__ Edge(const Scan<T>& s, const Place<P>& place, int64_t begin, int tokens)
      : s(s),
        begin(begin),
        group(place.group),
        tokens(tokens),
        index(threadIdx.x - P::kScanners),
        column(index % P::kColumns),
        above(index / P::kColumns * 4),
        channels(place.width - column * kItem) {
    const int64_t c = place.first + (channels > 0 ? column * kItem : 0);
    u_at = s.u + begin * s.u_stride + c;
    delta_at = s.delta + begin * s.delta_stride + c;
    z_at = s.z + begin * s.z_stride + c;
    y_at = s.y + begin * s.y_stride + c;
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      D[k] = s.D && k < channels ? s.D[c + k] : 0.0f;
      bias[k] = s.delta_bias && k < channels ? s.delta_bias[c + k] : 0.0f;
    }
    load(0);
  }

  // Tile i enters, and the next is asked for.
  __device__ void enter(const Tile& tile, int i) {
#pragma unroll 8
    for (int k = 0; k < P::kPieces; k++) {
      if constexpr (kAhead)
        store_piece(tile, k, pieces[k]);
      else
        store_piece(tile, k, load_piece(i, k));
    }
    if (s.delta_softplus)
      enter_items<true>(tile, i);
    else
      enter_items<false>(tile, i);
    if ((i + 1) * P::kSteps < tokens) load(i + 1);
  }

  // Tile i is scanned now, and leaves next.
  __device__ void follow(int i) {
    u_leaving = load_items(u_at, static_cast<Stride>(s.u_stride), i);
    if (s.z) z = load_items(z_at, static_cast<Stride>(s.z_stride), i);
  }

  __device__ void leave(const Tile& tile, int i) {
    Pack<kItem> out[4];
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      const float* from = tile.shares + P::row(column, k) * P::kRow + above;
#pragma unroll
      for (int j = 0; j < 4; j++) out[j].item[k] = D[k] * u_leaving.token[j][k];
#pragma unroll
      for (int p = 0; p < P::kLanes; p++) {
        const Pack<4> share = Pack<4>::load(from + p * P::kPlane);
#pragma unroll
        for (int j = 0; j < 4; j++) out[j].item[k] += share.item[j];
      }
    }
    if (s.z) {
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int k = 0; k < kItem; k++) out[j].item[k] *= silu(z.token[j][k]);
    }
    if (channels <= 0) return;
    const int t = i * P::kSteps + above;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const Stride scaled = static_cast<Stride>(t + j) * kSize;
      if (t + j < tokens) store(row(y_at, static_cast<Stride>(s.y_stride), scaled), out[j]);
    }
  }

 private:
  // A row's address, for its token times kSize.
  template <class U>
  __device__ static U* row(U* at, Stride stride, Stride scaled) {
    using Byte = std::conditional_t<std::is_const_v<U>, const char, char>;
    const int64_t bytes = static_cast<int64_t>(scaled) * stride;
    return reinterpret_cast<U*>(reinterpret_cast<Byte*>(at) + bytes);
  }
  // Token t of the sequence, or its last, times kSize. Steps beyond the last load it again: they
  // have dt = 0, and cost no predicates.
  __device__ Stride scaled(int t) const {
    return min(static_cast<Stride>(t) * kSize, static_cast<Stride>(tokens - 1) * kSize);
  }

  __device__ void load(int i) {
    delta = load_items(delta_at, static_cast<Stride>(s.delta_stride), i);
    u = load_items(u_at, static_cast<Stride>(s.u_stride), i);
    if constexpr (kAhead) {
#pragma unroll
      for (int k = 0; k < P::kPieces; k++) pieces[k] = load_piece(i, k);
    }
  }

  __device__ Items load_items(const T* at, Stride stride, int i) const {
    Items out;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const T* from = row(at, stride, scaled(i * P::kSteps + above + j));
      if constexpr (P::kFast)
        out.token[j] = Words<T, kItem>::load(from);
      else
        out.token[j] = Words<T, kItem>::load_some(from, channels);
    }
    return out;
  }

  template <bool Softplus>
  __device__ void enter_items(const Tile& tile, int i) const {
    const int t = i * P::kSteps + above;
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      Pack<4> dt, dtu;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float x = delta.token[j][k] + bias[k];
        if (Softplus) x = softplus(x);
        dt.item[j] = t + j < tokens ? x : 0.0f;  // a step of 0 changes nothing
        dtu.item[j] = dt.item[j] * u.token[j][k];
      }
      const int at = P::row(column, k) * P::kRow + above;
      dt.store(tile.dt + at);
      dtu.store(tile.dtu + at);
    }
  }

  __device__ void store(T* to, const Pack<kItem>& out) const {
    if constexpr (P::kFast) {
      out.store(to);
    } else {
#pragma unroll
      for (int k = 0; k < kItem; k++)
        if (k < channels) from_float(to[k], out.item[k]);
    }
  }

  // Piece k of tile i that this thread brings.
  __device__ Piece load_piece(int i, int k) const {
    const int piece = k * P::kEdges + index, t = i * P::kSteps + piece / kOfRow;
    const bool is_C = piece % kOfRow >= kOfRow / 2;
    const int n = piece % (kOfRow / 2) * P::kPiece, there = static_cast<int>(s.n) - n;
    if (there <= 0 || (!P::kFast && (is_C ? s.C_constant : s.B_constant))) return {};
    const int64_t stride = is_C ? s.C_stride : s.B_stride;
    const T* at = static_cast<const T*>(is_C ? s.C : s.B) + begin * stride + group * s.n + n;
    const T* from = row(at, static_cast<Stride>(stride), scaled(t));
    if constexpr (P::kFast)
      return Piece::load(from);
    else
      return Piece::load_some(from, there);
  }

  __device__ void store_piece(const Tile& tile, int k, const Piece& piece) const {
    const int number = k * P::kEdges + index, step = number / kOfRow;
    const bool is_C = number % kOfRow >= kOfRow / 2;
    if (step >= P::kSteps) return;
#pragma unroll
    for (int item = 0; item < P::kPiece; item += P::kQuad) {
      const int n = number % (kOfRow / 2) * P::kPiece + item;
      Pack<P::kQuad> some;
#pragma unroll
      for (int q = 0; q < P::kQuad; q++) some.item[q] = piece[item + q];
      some.store(tile.coefficients + step * P::kFactors + P::coefficient(n) + is_C * P::kToC);
    }
  }
};

}  // namespace ss::cuda
