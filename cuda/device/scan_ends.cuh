// What pieces of sequences leave at their ends, so that they can then be scanned side by side, each from the state it
// really starts with. From zero, a piece's last state is
//   h_n = sum over its tokens t of exp(A_n R_t) dt_t u_t B_tn,     R_t the sum of dt after t,
// and exp(A_n R) of what was there before it, R the sum over the piece (join_pieces). This is no recurrence: a warp has a
// channel, its lanes neighbouring tokens, and it sums tile by tile from the last back to the first. Where dt cannot
// be negative, exp(A_n R_t) falls on the way: once it is below 2^-64, a state has forgotten all that comes before,
// and is left out; a warp whose states have all forgotten ends. How much of a piece that saves depends on dt and A:
// for dt of .02 and A of -8, all but 280 tokens.
#pragma once
#include "mma.cuh"
#include "scan_plan.cuh"
#include "turnstile.cuh"

namespace ss::cuda {

constexpr float kForgotten = -64.0f;  // the exponent of 2; 40 bits below the last one of an f32 sum

// Warps that sum, a channel each, and one that brings their tiles: Stages of them, Early of which are on their way
// while the warps, each at its own pace, are at the others. Together: so many states are left out at once only, as
// they hide what each other waits for.
template <class T_, int Warps, int Stages, int Early, int Together, int Blocks>
struct EndsPlan {
  using T = T_;
  static constexpr int kN = 16, kWidth = Warps, kStages = Stages, kEarly = Early, kTogether = Together, kBlocks = Blocks;
  static constexpr int kThreads = 32 * (Warps + 1), kSteps = 128, kOwn = kSteps / 32;
  static constexpr int kItem = 4, kPiece = 16 / static_cast<int>(sizeof(T));  // what suits() asks for
  // Shared memory, in bytes. Of a stage: rows of delta and u, 4 channels a copy, padded to keep banks apart; neighbouring
  // lanes, whose tokens are kOwn apart, read neighbouring rows. Then B, turned.
  static constexpr int kSize = sizeof(T), kCopy = kItem * kSize, kRow = Warps * kSize + kCopy;
  static constexpr int kPlane = 32 * kRow + Warps * kSize, kTensor = kOwn * kPlane;
  static constexpr int kFactors = 2 * kTensor, kStage = kFactors + kN * kSteps * 4;
  static constexpr int kRates = Stages * kStage, kBytes = kRates + Warps * kN * 4;
  __device__ static int place(int r) { return r % kOwn * kPlane + r / kOwn * kRow; }
};

// B in f32, tiles of [kN, kSteps], so that a lane's tokens lie together; zeros beyond the last token.
template <class P>
__global__ void turn_factors(const __grid_constant__ Scan<typename P::T> s) {
  using T = typename P::T;
  const int64_t tile = blockIdx.x, group = blockIdx.y;
  for (int i = threadIdx.x; i < P::kSteps * P::kN / P::kPiece; i += blockDim.x) {
    const int row = i % P::kSteps, n = i / P::kSteps * P::kPiece;
    const int64_t t = tile * P::kSteps + row;
    Words<T, P::kPiece> items{};
    if (t < s.sequences.tokens && n < s.n)
      items = Words<T, P::kPiece>::load(static_cast<const T*>(s.B) + t * s.B_stride + group * s.n + n);
#pragma unroll
    for (int k = 0; k < P::kPiece; k++)
      s.factors[((group * gridDim.x + tile) * P::kN + n + k) * P::kSteps + row] = items[k];
  }
}

// Tiles of a piece in the order in which they are summed, number 0 the one that holds its last token.
struct EndTiles {
  int64_t begin, end, last;  // tokens; the last tile's number from the first token of all
  int count;
  template <class P>
  __device__ static EndTiles of(const Sequences::Piece& piece) {
    const int64_t last = (piece.end - 1) / P::kSteps;
    return {piece.begin, piece.end, last, static_cast<int>(last - piece.begin / P::kSteps) + 1};
  }
};

// What a block's warps tell each other. `summing`: warps that have states left.
template <class P>
struct EndGate {
  Turnstile full[P::kStages], empty[P::kStages];
  int summing;
};

// The warp that brings tiles. Rows beyond the piece are its nearest one.
template <class P>
__device__ void bring_tiles(const Scan<typename P::T>& s, const Place<P>& place, const EndTiles& tiles, char* raw,
                            EndGate<P>& gate) {
  using T = typename P::T;
  constexpr int of_row = P::kWidth / P::kItem, rows = 32 / of_row, size = P::kSize;
  static_assert(rows % P::kOwn == 0);
  const int lane = threadIdx.x % 32, row = lane / of_row, column = lane % of_row * P::kItem;
  const bool there = column < place.width;
  const auto first = [&](const T* x, int64_t stride) {
    return reinterpret_cast<const char*>(x + (tiles.last * P::kSteps + row) * stride + place.first + column);
  };
  // Rows further: their number times size, which with a stride makes one instruction.
  const auto further = [](const char* at, int scaled, int64_t stride) {
    const char* to;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(to) : "r"(scaled), "r"(static_cast<int>(stride)), "l"(at));
    return to;
  };
  const char *delta = first(s.delta, s.delta_stride), *u = first(s.u, s.u_stride);
  const int64_t of_group = (s.sequences.tokens + P::kSteps - 1) / P::kSteps;
  const float* factors = s.factors + (place.group * of_group + tiles.last) * (P::kN * P::kSteps) + lane * 4;
  char* to = raw + P::place(row) + column * size;
  // The piece's first and last row, from this lane's first one of the tile on.
  int least = static_cast<int>(tiles.begin - tiles.last * P::kSteps) - row;
  int most = static_cast<int>(tiles.end - 1 - tiles.last * P::kSteps) - row;
  for (int i = 0; i < tiles.count + P::kEarly - 1; i++) {
    const int stage = i % P::kStages;
    if (i < tiles.count) {
      if (i >= P::kStages) {
        gate.empty[stage].pass(i / P::kStages - 1);
        if (__all_sync(~0u, atomicAdd(&gate.summing, 0) == 0)) break;
      }
      char* at = to + stage * P::kStage;
#pragma unroll
      for (int k = 0; k < P::kSteps / rows; k++) {
        const int r = (k * rows < least ? least : k * rows < most ? k * rows : most) * size;
        constexpr int apart = rows / P::kOwn * P::kRow;
        if (there) {
          copy_some<P::kCopy>(at + k * apart, further(delta, r, s.delta_stride));
          copy_some<P::kCopy>(at + k * apart + P::kTensor, further(u, r, s.u_stride));
        }
      }
#pragma unroll
      for (int k = 0; k < P::kN * P::kSteps / 128; k++)
        copy_some<16>(raw + stage * P::kStage + P::kFactors + lane * 16 + k * 512, factors + k * 128);
      delta = further(delta, -P::kSteps * size, s.delta_stride), u = further(u, -P::kSteps * size, s.u_stride);
      factors -= P::kN * P::kSteps, least += P::kSteps, most += P::kSteps;
    }
    end_copy_group();
    wait_copy_groups<P::kEarly - 1>();
    if (i >= P::kEarly - 1) gate.full[(i - P::kEarly + 1) % P::kStages].arrive();
  }
  wait_copy_groups<0>();
}

// A warp that sums: channel `place.first` and its own number.
template <class P>
class PieceEnd {
  using T = typename P::T;
  static constexpr int N = P::kN, G = P::kOwn;

  const Scan<T>& s;
  const EndTiles& tiles;
  const int lane;
  const char* const memory;
  const int own;  // where this thread's first item of delta lies in a stage
  const float* const rates;
  const float bias;
  unsigned left;  // states that have not forgotten
  float sums[N] = {}, after = 0.0f;  // the sum of dt after the tile

 public:
  __device__ PieceEnd(const Scan<T>& s, const Place<P>& place, const EndTiles& tiles, char* memory)
      : s(s),
        tiles(tiles),
        lane(threadIdx.x % 32),
        memory(memory),
        own(threadIdx.x / 32 * P::kSize + lane * P::kRow),
        rates(reinterpret_cast<float*>(memory + P::kRates) + threadIdx.x / 32 * N),
        bias(s.delta_bias ? s.delta_bias[place.first + threadIdx.x / 32] : 0.0f),
        left((1u << s.n) - 1) {}

  __device__ void walk(EndGate<P>& gate) {
    int i = 0;
    for (; i < tiles.count && left; i++) {
      const int stage = i % P::kStages;
      const int64_t tile = tiles.last - i;
      const bool whole = tile * P::kSteps >= tiles.begin && (tile + 1) * P::kSteps <= tiles.end;
      gate.full[stage].pass(i / P::kStages);
      whole ? add<false>(tile, memory + stage * P::kStage) : add<true>(tile, memory + stage * P::kStage);
      gate.empty[stage].arrive();
    }
    // From here on no stage waits for this warp.
    for (int k = 0; k < P::kStages && i < tiles.count; k++, i++) {
      gate.full[i % P::kStages].pass(i / P::kStages);
      if (k + 1 == P::kStages && lane == 0) atomicSub(&gate.summing, 1);
      __syncwarp();
      gate.empty[i % P::kStages].leave();
    }
  }

  __device__ void store(float* carry, float* time) const {
    float h = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) {
      float sum = sums[n];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (lane == n) h = sum;
    }
    if (lane < s.n) carry[lane] = h;
    if (lane == 0) *time = after;
  }

 private:
  template <bool Partial>
  __device__ __forceinline__ void add(int64_t tile, const char* stage) {
    unsigned there = 0;  // which of the lane's tokens are the piece's
    if (Partial)
#pragma unroll
      for (int k = 0; k < G; k++) {
        const int64_t t = tile * P::kSteps + lane * G + k;
        there |= (t >= tiles.begin && t < tiles.end) << k;
      }
    float R[G], x[G], sum = 0.0f;
#pragma unroll
    for (int k = G - 1; k >= 0; k--) {
      const char* at = stage + own + k * P::kPlane;
      float dt = to_float(*reinterpret_cast<const T*>(at)) + bias;
      if (s.delta_softplus) dt = softplus_for<T>(dt);
      x[k] = dt * to_float(*reinterpret_cast<const T*>(at + P::kTensor));
      if (Partial && !(there >> k & 1)) dt = x[k] = 0.0f;
      R[k] = sum, sum += dt;
    }
    float through = sum;  // of this lane and those behind
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float more = __shfl_down_sync(~0u, through, step);
      if (lane + step < 32) through += more;
    }
    const float behind = __shfl_down_sync(~0u, through, 1), later = after + (lane < 31 ? behind : 0.0f);
#pragma unroll
    for (int k = 0; k < G; k++) {
      R[k] += later;
      if (x[k] == 0.0f) R[k] = 0.0f;  // with A > 0 a decay may be infinite
    }
    after += __shfl_sync(~0u, through, 0);

    const float* B = reinterpret_cast<const float*>(stage + P::kFactors) + lane * G;
#pragma unroll
    for (int n = 0; n < N; n += P::kTogether) {
      if (!(left >> n & ((1u << P::kTogether) - 1))) continue;
#pragma unroll
      for (int m = n; m < n + P::kTogether; m++) {
        const float rate = rates[m];
        auto four = Pack<G>::load(B + m * P::kSteps);
#pragma unroll
        for (int k = 0; k < G; k++) {
          if (Partial && !(there >> k & 1)) four.item[k] = 0.0f;
          sums[m] = fmaf(exp2_approx(rate * R[k]) * x[k], four.item[k], sums[m]);
        }
      }
    }
    left &= ~__ballot_sync(~0u, s.delta_softplus && lane < N && rates[lane % N] * after < kForgotten);
  }
};

// A block for each piece and kWidth channels of it; nothing of a sequence's last piece.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kBlocks) scan_ends(const __grid_constant__ Scan<typename P::T> s) {
  extern __shared__ float4 memory[];
  __shared__ EndGate<P> gate;
  const int64_t number = blockIdx.x / s.blocks;
  const auto piece = s.sequences.piece(number, s.cut);
  if (piece.begin >= piece.end || piece.end == piece.stop) return;
  const Place<P> place(s, blockIdx.x % s.blocks);
  const EndTiles tiles = EndTiles::of<P>(piece);
  char* bytes = reinterpret_cast<char*>(memory);
  if (threadIdx.x < P::kStages) {
    gate.full[threadIdx.x].make(32);
    gate.empty[threadIdx.x].make(place.width * 32);
  }
  if (threadIdx.x == 0) gate.summing = place.width;
  if (threadIdx.x < place.width * P::kN) {
    const int64_t c = place.first + threadIdx.x / P::kN, n = threadIdx.x % P::kN;
    reinterpret_cast<float*>(bytes + P::kRates)[threadIdx.x] = n < s.n ? s.A[c * s.A_stride + n] * kLog2e : 0.0f;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp == P::kWidth) {
    bring_tiles<P>(s, place, tiles, bytes, gate);
  } else if (warp < place.width) {
    PieceEnd<P> one(s, place, tiles, bytes);
    one.walk(gate);
    const int64_t c = place.first + warp;
    one.store(s.carry + (number * s.d + c) * s.n, s.time + number * s.d + c);
  }
}

// From what the pieces add to what each starts from, one after the other; a thread for each state.
template <class T>
__global__ void join_pieces(const __grid_constant__ Scan<T> s) {
  constexpr int kBatch = 8;  // loads under way
  const int64_t at = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, row = s.d * s.n;
  const auto sequence = s.sequences.whole(blockIdx.y);
  const int64_t count = (sequence.stop - sequence.start + tokens_of(s.cut) - 1) / tokens_of(s.cut);
  if (at >= row || count <= 0) return;
  const int64_t first = s.sequences.first_piece(blockIdx.y, s.cut), c = at / s.n;
  const float A = s.A[c * s.A_stride + at % s.n] * kLog2e;
  const int64_t slot = s.sequences.slot(blockIdx.y);
  float h = slot < 0 ? 0.0f : s.state[slot * s.state_stride + at];
  for (int64_t k = 0; k < count; k += kBatch) {
    float added[kBatch], time[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      const bool there = k + j + 1 < count;  // the last piece adds to none
      added[j] = there ? s.carry[(first + k + j) * row + at] : 0.0f;
      time[j] = there ? s.time[(first + k + j) * s.d + c] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      if (k + j >= count) break;
      s.carry[(first + k + j) * row + at] = h;
      h = fmaf(exp2_approx(A * time[j]), h, added[j]);
    }
  }
}

}  // namespace ss::cuda
