// An edge thread of the ring (scan_ring.cuh): 4 tokens by kItem channels of every kCrews-th tile.
// Raw inputs lie in shared memory that no other thread touches, until their tile has left.
#pragma once
#include "mma.cuh"
#include "scan_ring_plan.cuh"

namespace ss::cuda {

template <class P>
class RingEdge {
  using T = typename P::T;
  static constexpr int kItem = P::kItem, kSize = sizeof(T);
  using Items = Words<T, kItem>;
  using Piece = Words<T, P::kPiece>;
  struct Entering {
    Pack<4> dt[kItem], dtu[kItem];
  };
  enum Tensor { kDelta, kU, kZ };

  const Scan<T>& s;
  const int tokens;                  // of the piece
  const int index, crew;             // this thread among its crew
  const int column, above;           // its channels; the tile's tokens before its own
  const int channels;                // that there are of its kItem; may be negative
  const bool is_C;                   // which of B and C it brings pieces of, where n allows
  const int n;
  // Its first rows of the tile that its crew asks for next, and of y of the one that leaves next.
  const char *delta_next, *u_next, *z_next, *factor_next;
  char* y_next;
  char* raw;  // the crew's slots
  float D[kItem], bias[kItem];

 public:
  __device__ RingEdge(const Scan<T>& s, const Place<P>& place, int64_t begin, int tokens, char* raws)
      : s(s),
        tokens(tokens),
        index((threadIdx.x - P::kScanners) % P::kCrew),
        crew((threadIdx.x - P::kScanners) / P::kCrew),
        column(index % P::kColumns),
        above(index / P::kColumns * 4),
        channels(place.width - column * kItem),
        is_C(index % P::kOfRow >= P::kOfRow / 2),
        n(index % (P::kOfRow / 2) * P::kPiece),
        raw(raws + crew * P::kSlots * P::kSlot) {
    const int64_t c = place.first + (channels > 0 ? column * kItem : 0);
    const int64_t tile = begin + crew * P::kSteps, first = tile + above;
    const auto at = [&](const T* x, int64_t stride) {
      return reinterpret_cast<const char*>(x + first * stride + c);
    };
    delta_next = at(s.delta, s.delta_stride), u_next = at(s.u, s.u_stride);
    z_next = s.z ? at(s.z, s.z_stride) : nullptr;
    y_next = const_cast<char*>(at(s.y, s.y_stride));
    const T* factors = static_cast<const T*>(is_C ? s.C : s.B);
    factor_next = reinterpret_cast<const char*>(factors + (tile + index / P::kOfRow) * factor_stride() +
                                                place.group * s.n + (n < s.n ? n : 0));
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      D[k] = s.D && k < channels ? s.D[c + k] : 0.0f;
      bias[k] = s.delta_bias && k < channels ? s.delta_bias[c + k] : 0.0f;
    }
  }

  // The first tiles: while the scanning warps load A and their states.
  __device__ void ask_first(int tiles) {
#pragma unroll 1
    for (int m = 0; m < P::kEarly; m++) {
      if (crew + m * P::kCrews < tiles) ask(crew + m * P::kCrews, m);
      end_copy_group();
    }
  }

  // dt and dt u of a tile are made before its stage is free, so that the scan waits for stores only.
  __device__ void walk(float* memory, Turnstile* full, Turnstile* scanned, int tiles) {
    Ring<P::kSlots> asked, entering, leaving;
    Ring<P::kStages> stage;
    asked.at = P::kEarly % P::kSlots;
    stage.at = crew;
    for (int i = crew; i < tiles + P::kStages; i += P::kCrews) {
      const bool enters = i < tiles, leaves = i >= P::kStages;
      Entering items;
      if (enters) {
        wait_copy_groups<P::kEarly - 1>();
        items = s.delta_softplus ? make<true>(i, entering.at) : make<false>(i, entering.at);
      }
      const Tile tile = P::tile(memory, stage.at);
      if (leaves) {
        scanned[stage.at].pass(stage.round - 1);
        s.z ? leave<true>(tile.shares, i - P::kStages, leaving.at)
            : leave<false>(tile.shares, i - P::kStages, leaving.at);
        leaving.next();
      }
      if (enters) {
        enter_pieces(tile, entering.at);
        enter(tile, items);
        full[stage.at].arrive();
        entering.next();
      }
      const int early = i + P::kEarly * P::kCrews;
      if (early < tiles) ask(early, asked.at);
      end_copy_group();
      asked.next(), stage.next(P::kCrews);
    }
  }

 private:
  // Rows further: their number times kSize, which with a stride makes one instruction.
  static __device__ const char* further(const char* at, int scaled, int64_t stride) {
    const char* to;
    asm("mad.wide.s32 %0, %1, %2, %3;"
        : "=l"(to)
        : "r"(scaled), "r"(static_cast<int>(stride)), "l"(at));
    return to;
  }
  static __device__ const char* turn(const char* at, int64_t stride) {  // to the crew's next tile
    return further(at, P::kCrews * P::kSteps * kSize, stride);
  }
  __device__ int64_t factor_stride() const { return is_C ? s.C_stride : s.B_stride; }

  // Where this thread's items of token j lie, and its piece k of B or C.
  __device__ T* items(int slot, Tensor tensor, int j) const {
    return reinterpret_cast<T*>(raw + slot * P::kSlot +
                                ((tensor * 4 + j) * P::kCrew + index) * (P::kItemBytes));
  }
  __device__ T* piece(int slot, int k) const {
    return reinterpret_cast<T*>(raw + slot * P::kSlot + P::kItems + (k * P::kCrew + index) * 16);
  }

  // Rows beyond the piece's last are that one again, and are given dt = 0.
  __device__ void ask(int i, int slot) {
    constexpr int bytes = P::kItemBytes;
    const int last = tokens - 1 - i * P::kSteps;  // of the tile's tokens
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = smaller(j * kSize, (last - above) * kSize);
      const auto copy = [&](Tensor tensor, const char* next, int64_t stride) {
        copy_some<bytes>(items(slot, tensor, j), further(next, row, stride));
      };
      copy(kDelta, delta_next, s.delta_stride), copy(kU, u_next, s.u_stride);
      if (s.z) copy(kZ, z_next, s.z_stride);
    }
    delta_next = turn(delta_next, s.delta_stride), u_next = turn(u_next, s.u_stride);
    if (s.z) z_next = turn(z_next, s.z_stride);
    const int own = index / P::kOfRow;
#pragma unroll
    for (int k = 0; k < P::kPieces; k++) {
      constexpr int rows = P::kCrew / P::kOfRow;
      if (P::kSteps % rows && own + k * rows >= P::kSteps) break;
      const int row = smaller(k * rows * kSize, (last - own) * kSize);
      copy_async(piece(slot, k), further(factor_next, row, factor_stride()), n < s.n);
    }
    factor_next = turn(factor_next, factor_stride());
  }

  __device__ void enter_pieces(const Tile& tile, int slot) const {
#pragma unroll
    for (int k = 0; k < P::kPieces; k++) {
      const int number = k * P::kCrew + index, t = number / P::kOfRow;
      if (P::kSteps * P::kOfRow % P::kCrew && t >= P::kSteps) break;
      const auto some = Piece::load(piece(slot, k));
#pragma unroll
      for (int item = 0; item < P::kPiece; item += P::kQuad) {
        Pack<P::kQuad> quad;
#pragma unroll
        for (int q = 0; q < P::kQuad; q++) quad.item[q] = some[item + q];
        quad.store(tile.coefficients + t * P::kFactors + P::coefficient(n + item) + is_C * P::kToC);
      }
    }
  }

  template <bool Softplus>
  __device__ Entering make(int i, int slot) const {
    Entering out;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const auto delta = Items::load(items(slot, kDelta, j)), u = Items::load(items(slot, kU, j));
#pragma unroll
      for (int k = 0; k < kItem; k++) {
        const float x = delta[k] + bias[k];
        out.dt[k].item[j] = Softplus ? softplus_for<T>(x) : x;
        out.dtu[k].item[j] = out.dt[k].item[j] * u[k];
      }
    }
    const int there = tokens - i * P::kSteps - above;
    if (there < 4) {  // a step of 0 changes nothing
#pragma unroll
      for (int k = 0; k < kItem; k++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j >= there) out.dt[k].item[j] = out.dtu[k].item[j] = 0.0f;
    }
    return out;
  }

  __device__ void enter(const Tile& tile, const Entering& in) const {
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      const int at = P::row(column, k) * P::kRow + above;
      in.dt[k].store(tile.dt + at), in.dtu[k].store(tile.dtu + at);
    }
  }

  template <bool Gated>
  __device__ void leave(const float* shares, int i, int slot) {
    Items u[4], z[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u[j] = Items::load(items(slot, kU, j));
      if (Gated) z[j] = Items::load(items(slot, kZ, j));
    }
    Pack<kItem> out[4];
#pragma unroll
    for (int k = 0; k < kItem; k++) {
      const float* from = shares + P::row(column, k) * P::kRow + above;
      Pack<4> y = Pack<4>::load(from);
#pragma unroll
      for (int p = 1; p < P::kLanes; p++) {
        const auto share = Pack<4>::load(from + p * P::kPlane);
#pragma unroll
        for (int j = 0; j < 4; j++) y.item[j] += share.item[j];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) out[j].item[k] = fmaf(D[k], u[j][k], y.item[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int k = 0; k < kItem; k++)
        out[j].item[k] *= Gated ? silu(z[j][k]) : 1.0f;
    const int there = channels > 0 ? tokens - i * P::kSteps - above : 0;
    const auto put = [&](int j) {
      out[j].store(reinterpret_cast<T*>(const_cast<char*>(further(y_next, j * kSize, s.y_stride))));
    };
    if (there >= 4) {
#pragma unroll
      for (int j = 0; j < 4; j++) put(j);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < there) put(j);
    }
    y_next = const_cast<char*>(turn(y_next, s.y_stride));
  }
};

}  // namespace ss::cuda
