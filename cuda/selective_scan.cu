// Per sequence and channel c, with group(c) = c / (d / g):
//   dt = softplus?(delta + delta_bias)
//   h  = exp(dt A) h + dt B u                    // [n]
//   y  = (sum over n of h C + D u) * silu(z)?
// Long sequences: a block takes some channels of one through all of its tokens, device/scan.cuh;
// u, delta, z and y cross memory once, states stay in registers. 4 t d items move, and t d n
// exponentials are what it costs. Where sequences and channels are too few to fill the card, pieces
// of them go side by side: once to see what each adds to the state (device/scan_ends.cuh), once with the state it
// starts from (Gu and Dao 2023, section 3.3.2: the recurrence is associative). Sequences of one token:
// device/scan_step.cuh, 8 s d n bytes of state.
#include <algorithm>

#include "card.h"
#include "device/scan.cuh"
#include "device/scan_ends.cuh"
#include "device/scan_relay.cuh"
#include "device/scan_ring.cuh"
#include "device/scan_short.cuh"
#include "device/scan_step.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "narrow_states.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class K, class T>
void launch(Stream& stream, K kernel, int64_t blocks, int threads, int bytes, const Scan<T>& s) {
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream.handle>>>(s);
}

template <class T>
bool aligned(const void* p, int64_t stride, int items) {
  return reinterpret_cast<uintptr_t>(p) % (items * sizeof(T)) == 0 && stride % items == 0;
}

template <class P>
bool suits(const Scan<typename P::T>& s) {
  using T = typename P::T;
  constexpr int item = P::kItem, piece = P::kPiece;
  const auto short_ones = [](auto... stride) { return (... && (stride <= INT32_MAX)); };
  return s.sequences.tokens <= INT32_MAX / 4 && !s.B_constant && !s.C_constant &&
         short_ones(s.u_stride, s.delta_stride, s.z_stride, s.y_stride, s.B_stride, s.C_stride) &&
         s.group_channels % item == 0 && s.n % piece == 0 &&
         aligned<T>(s.u, s.u_stride, item) && aligned<T>(s.delta, s.delta_stride, item) &&
         aligned<T>(s.y, s.y_stride, item) && (!s.z || aligned<T>(s.z, s.z_stride, item)) &&
         aligned<T>(s.B, s.B_stride, piece) && aligned<T>(s.C, s.C_stride, piece);
}

template <class P>
void lay_out(Scan<typename P::T>& s) {
  s.group_blocks = static_cast<unsigned>(ceil_div(s.group_channels, P::kWidth));
  s.blocks = static_cast<unsigned>(s.d / s.group_channels * s.group_blocks);
}

template <class P>
bool launch_scan(Stream& stream, Scan<typename P::T> s) {
  if (P::kFast && !suits<P>(s)) return false;
  s.cut = kUncut;
  lay_out<P>(s);
  launch(stream, scan_sequences<P>, s.blocks * s.sequences.count, P::kThreads, P::kBytes, s);
  return true;
}

// Up to 16 states: for full cards, those that this one would fill badly, where a card has one block
// a multiprocessor, and for lone blocks: of one sequence of 5120 channels (16 bits), of 4096, of fewer.
template <class T>
using Ring320 = RingPlan<T, 8, 2, 10, 4, 8, 2, 2, 1, 1, 0, 2>;
template <class T>
using Ring256 = RingPlan<T, 8, 2, 8, 4, 8, 2, 2, 1, 1, 0, 2>;
template <class T>
using Ring128 = RingPlan<T, 8, 2, 8, 4, 16, 2, 2, 1, 1, 0>;
template <class T>
using Ring96 = RingPlan<T, 8, 2, 6, 4, 16, 2, 2, 1, 1, 0>;
template <class T>
using Ring40 = RingPlan<T, 2, 8, 10, 2, 32, 2, 2, 2, 1, 4>;
template <class T>
using Ring32 = RingPlan<T, 2, 8, 8, 4, 16, 4, 4, 2, 1, 4>;
template <class T>
using Ring16 = RingPlan<T, 2, 8, 4, 2, 16, 4, 4, 2, 2, 4>;

template <class P>
bool fits() {
  return P::kBytes + kTurnstiles <= shared_bytes();
}

// Whole sequences or, where `pieces` are given, each from its carry.
template <class P>
bool launch_ring(Stream& stream, Scan<typename P::T> s, int64_t pieces = 0) {
  if (!fits<P>() || !suits<P>(s)) return false;
  if (pieces == 0) s.cut = kUncut, pieces = s.sequences.count;
  lay_out<P>(s);
  launch(stream, scan_ring<P>, s.blocks * pieces, P::kThreads, P::kBytes, s);
  return true;
}

// For few channels: 24 on two multiprocessors. 16 bits, 16 states, z and softplus; capability 9.0.
template <class T>
using Relay24 = RelayPlan<T, 3, 4, 6>;

template <class T>
bool suits_relay(const Scan<T>& s) {
  if constexpr (sizeof(T) != 2) return false;
  const auto rows = [](const void* p, int64_t stride) { return aligned<T>(p, stride, 8) && stride <= INT32_MAX; };
  return starts_early() && s.n == 16 && s.z && s.delta_softplus && !s.B_constant && !s.C_constant &&
         s.group_channels % 8 == 0 && s.sequences.tokens <= INT32_MAX / 4 && rows(s.u, s.u_stride) &&
         rows(s.delta, s.delta_stride) && rows(s.z, s.z_stride) && rows(s.B, s.B_stride) &&
         rows(s.C, s.C_stride) && s.y_stride <= INT32_MAX;
}

template <class P>
void launch_relay(Stream& stream, Scan<typename P::T> s) {
  s.blocks = static_cast<unsigned>(ceil_div(s.d, P::kWidth));
  cudaFuncSetAttribute(scan_relay<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  launch(stream.handle, scan_relay<P>,
         Grid{static_cast<unsigned>(s.blocks * s.sequences.count * P::kCluster), P::kThreads, P::kBytes,
              P::kCluster},
         s);
}

// Of the first pass over pieces.
template <class T>
using PieceEnds = EndsPlan<T, 16, sizeof(T) == 2 ? 4 : 3, 2, 2, 2>;

// Pieces of `tokens` in blocks of `width` channels.
struct InPieces {
  int64_t tokens, cycles;
  int width;
};

// As many pieces as fill the card with blocks of the second pass, once or a few times. Few long ones are best: in the
// first pass a token costs the less the longer its piece is, as more of it is forgotten.
template <class T>
InPieces in_pieces(const Scan<T>& s) {
  // Cycles of three more launches, of the first pass for a token and channel, and tokens of a piece of which half is
  // forgotten: where dt is .02 in the mean and A -8.
  constexpr double kLaunches = 20000, kEnd = 1.7, kKept = 3000;
  const int64_t tokens = s.sequences.tokens, count = s.sequences.count, units = multiprocessors();
  InPieces best{0, INT64_MAX, 0};
  if (!fits<PieceEnds<T>>()) return best;
  const auto consider = [&](int width, int64_t cycles, bool fits) {
    const int64_t blocks = s.d / s.group_channels * ceil_div(s.group_channels, width);
    for (int64_t rounds = 1; fits && rounds <= 16; rounds++) {
      const int64_t pieces = units * rounds / blocks - (count - 1);  // each sequence may begin one
      if (pieces < 2) continue;
      const int64_t each = std::max(ceil_div(ceil_div(tokens, pieces), 32) * 32, int64_t{128});
      const double ends = kEnd * static_cast<double>(s.d * tokens) / (1 + static_cast<double>(each) / kKept) / units;
      const int64_t all = rounds * each * cycles + static_cast<int64_t>(ends + kLaunches);
      if (all < best.cycles) best = {each, all, width};
    }
  };
  consider(320, 490, fits<Ring320<T>>());
  consider(256, 382, fits<Ring256<T>>());
  consider(128, 198, fits<Ring128<T>>());
  consider(64, 110, true);
  return best;
}

// Once to see what each piece leaves at its end, once from the state it starts with.
template <class T>
bool launch_pieces(Stream& stream, Scan<T> s, const InPieces& plan) {
  using Wide = Plan<T, 8, 2, true, 2>;
  using Ends = PieceEnds<T>;
  if (!suits<Wide>(s)) return false;
  s.cut = {static_cast<uint32_t>(plan.tokens)};
  const int64_t pieces = s.sequences.pieces(s.cut), row = s.d * s.n, groups = s.d / s.group_channels;
  const int64_t tiles = ceil_div(s.sequences.tokens, Ends::kSteps);
  const int64_t carry = pieces * row, time = pieces * s.d, factors = groups * tiles * Ends::kN * Ends::kSteps;
  const Scratch scratch(stream, (factors + carry + time) * static_cast<int64_t>(sizeof(float)));
  if (!scratch.floats()) return true;
  s.factors = scratch.floats(), s.carry = s.factors + factors, s.time = s.carry + carry;
  const dim3 turn(static_cast<unsigned>(tiles), static_cast<unsigned>(groups));
  turn_factors<Ends><<<turn, 256, 0, stream.handle>>>(s);
  lay_out<Ends>(s);
  launch(stream, scan_ends<Ends>, s.blocks * pieces, Ends::kThreads, Ends::kBytes, s);
  const dim3 grid(static_cast<unsigned>(ceil_div(row, 128)), static_cast<unsigned>(s.sequences.count));
  join_pieces<T><<<grid, 128, 0, stream.handle>>>(s);
  if (plan.width == 320) return launch_ring<Ring320<T>>(stream, s, pieces);
  if (plan.width == 256) return launch_ring<Ring256<T>>(stream, s, pieces);
  if (plan.width == 128) return launch_ring<Ring128<T>>(stream, s, pieces);
  lay_out<Wide>(s);
  launch(stream, scan_sequences<Wide>, s.blocks * pieces, Wide::kThreads, Wide::kBytes, s);
  return true;
}

// Where a thread can have a channel of 16 states, and there are enough to fill the card.
template <class T>
bool launch_short(Stream& stream, Scan<T> s) {
  if (s.n != kShortStates || s.B_constant || s.C_constant || s.sequences.tokens > INT32_MAX / 4 ||
      !aligned<float>(s.A, s.A_stride, 4) || (s.state && !aligned<float>(s.state, s.state_stride, 4)))
    return false;
  s.group_blocks = static_cast<unsigned>(ceil_div(s.group_channels, kShortThreads));
  s.blocks = static_cast<unsigned>(s.d / s.group_channels * s.group_blocks);
  if (s.blocks * s.sequences.count < 4 * multiprocessors()) return false;
  launch(stream, scan_short<T>, s.blocks * s.sequences.count, kShortThreads, 0, s);
  return true;
}

// Up to 16 states. Narrow plans make more and shorter blocks: they fill the card where sequences or
// channels are few, but cost more a channel; pieces fill it too, but need two passes. Rings start
// slowly: they are for long sequences. The numbers are cycles for one token, read off the times in
// docs/kernels/selective_scan.md: of a multiprocessor's first block and of each more. A narrower
// plan asks for less alignment: it takes what a wider one refuses.
template <class T>
bool scan_few_states(Stream& stream, const Scan<T>& s) {
  using Wide = Plan<T, 8, 2, true, 2>;
  const int64_t units = multiprocessors(), groups = s.sequences.count * (s.d / s.group_channels);
  const auto cycles = [&](int width, int first, int more) {
    return first + (ceil_div(groups * ceil_div(s.group_channels, width), units) - 1) * more;
  };
  const int64_t wide = cycles(64, 124, 95), middle = cycles(32, 101, 48), narrow = cycles(16, 76, 30);
  const int64_t r320 = fits<Ring320<T>>() ? cycles(320, 490, 490) : INT64_MAX;
  const int64_t r256 = fits<Ring256<T>>() ? cycles(256, 382, 382) : INT64_MAX;
  const int64_t r128 = cycles(128, 198, 198), r96 = cycles(96, 172, 172), r16 = cycles(16, 36, 31);
  const int64_t r40 = fits<Ring40<T>>() && suits<Ring40<T>>(s) ? cycles(40, 86, 86) : INT64_MAX;
  const int64_t r32 = fits<Ring32<T>>() && suits<Ring32<T>>(s) ? cycles(32, 58, 58) : INT64_MAX;

  constexpr int64_t kLong = 256;  // tokens
  const int64_t tokens = s.sequences.tokens, mean = tokens / s.sequences.count;
  constexpr int64_t kShort = 32;  // no more than a tile of the other plans
  if (mean <= kShort && launch_short(stream, s)) return true;
  const int64_t ring = std::min({r320, r256, r128, r96, r40, r32, r16});
  const int64_t whole = mean < kLong ? std::min({wide, middle, narrow}) : ring;
  const InPieces pieces = in_pieces(s);
  if constexpr (sizeof(T) == 2) {
    using Relay = Relay24<T>;
    // Cycles for a token and before the first. Beyond kFar tokens the blocks drift apart, and rows, of which each
    // reads 48 bytes, cross memory more than once.
    constexpr int64_t kRelay = 30, kStart = 6000, kFar = 32768;
    const int64_t clusters = s.sequences.count * ceil_div(s.d, Relay::kWidth);
    const int64_t relay = ceil_div(clusters * Relay::kCluster, units) * (kRelay * mean + kStart);
    if (mean >= kLong && mean <= kFar && relay < std::min(mean * whole, pieces.cycles) && suits_relay(s)) {
      launch_relay<Relay>(stream, s);
      return true;
    }
  }
  if (pieces.cycles < mean * whole && launch_pieces(stream, s, pieces)) return true;
  if (mean >= kLong) {
    if (ring == r320   ? launch_ring<Ring320<T>>(stream, s)
        : ring == r256 ? launch_ring<Ring256<T>>(stream, s)
        : ring == r128 ? launch_ring<Ring128<T>>(stream, s)
        : ring == r96  ? launch_ring<Ring96<T>>(stream, s)
        : ring == r40  ? launch_ring<Ring40<T>>(stream, s)
        : ring == r32  ? launch_ring<Ring32<T>>(stream, s)
                      : launch_ring<Ring16<T>>(stream, s))
      return true;
  }
  if (wide <= middle && wide <= narrow && launch_scan<Wide>(stream, s)) return true;
  if (middle <= narrow && launch_scan<Plan<T, 4, 4, true, 3>>(stream, s)) return true;
  return launch_scan<Plan<T, 2, 8, true, 3>>(stream, s);
}

template <class T>
bool scan_fast(Stream& stream, const Scan<T>& s) {
  if (s.n <= 8) return launch_scan<Plan<T, 4, 2, true, 2>>(stream, s);
  if (s.n <= 16) return scan_few_states(stream, s);
  if (s.n <= 32) return launch_scan<Plan<T, 8, 4, true, 2>>(stream, s);
  if (s.n <= 64) return launch_scan<Plan<T, 8, 8, true, 2>>(stream, s);
  if (s.n <= 128) return launch_scan<Plan<T, 8, 16, true, 2>>(stream, s);
  return launch_scan<Plan<T, 16, 16, true, 1>>(stream, s);
}

template <class T>
void scan_any(Stream& stream, const Scan<T>& s) {
  if (scan_fast(stream, s)) return;
  if (s.n <= 16)
    launch_scan<Plan<T, 4, 4, false, 2>>(stream, s);
  else if (s.n <= 64)
    launch_scan<Plan<T, 8, 8, false, 1>>(stream, s);
  else
    launch_scan<Plan<T, 16, 16, false, 1>>(stream, s);
}

template <class T, int Lanes, int Quads>
void launch_step(Stream& stream, Scan<T> s) {
  s.blocks = static_cast<unsigned>(ceil_div(s.d, kStepThreads / Lanes));
  // Several sequences a block where there are enough of them to fill the card with.
  constexpr int rows = Quads == 1 ? 4 : 2;
  const int64_t of_rows = s.blocks * ceil_div(s.sequences.count, rows);
  if (of_rows * kStepThreads >= multiprocessors() * 2048)
    launch(stream, scan_tokens<T, Lanes, Quads, rows>, of_rows, kStepThreads, 0, s);
  else
    launch(stream, scan_tokens<T, Lanes, Quads, 1>, s.blocks * s.sequences.count, kStepThreads, 0,
           s);
}

template <class T>
void step_any(Stream& stream, Scan<T> s) {
  const auto fours = [](const void* p, int64_t stride, bool f32) {
    return f32 ? aligned<float>(p, stride, 4) : aligned<T>(p, stride, 4);
  };
  s.wide = s.n % 4 == 0 && fours(s.A, s.A_stride, true) && fours(s.state, s.state_stride, true) &&
           fours(s.B, s.B_stride, s.B_constant) && fours(s.C, s.C_stride, s.C_constant);
  if (s.n <= 8)
    launch_step<T, 2, 1>(stream, s);
  else if (s.n <= 16)
    launch_step<T, 4, 1>(stream, s);
  else if (s.n <= 64)
    launch_step<T, 16, 1>(stream, s);
  else
    launch_step<T, 32, 2>(stream, s);
}

template <class T>
Scan<T> describe(const Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z,
                 Opt delta_bias, In offsets, Opt slots, OptInOut state, bool delta_softplus,
                 Out y) {
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  Scan<T> s{};
  s.u = u.data<T>(), s.u_stride = u.stride();
  s.delta = delta.data<T>(), s.delta_stride = delta.stride();
  if (z) s.z = z.data<T>(), s.z_stride = z.stride();
  s.y = y.data<T>(), s.y_stride = y.stride();
  s.A = A.data<float>(), s.A_stride = A.stride();
  if (D) s.D = D.data<float>();
  if (delta_bias) s.delta_bias = delta_bias.data<float>();
  s.B = B.view->data, s.B_stride = B.stride(), s.B_constant = B.rank() == 2;
  s.C = C.view->data, s.C_stride = C.stride(), s.C_constant = C.rank() == 2;
  if (state) s.state = state.data<float>(), s.state_stride = state.stride();
  s.sequences = sequences(stream, offsets, slots, state, u.size(0));
  s.d = u.size(1), s.n = A.size(1), s.group_channels = s.d / groups;
  s.delta_softplus = delta_softplus;
  return s;
}

}  // namespace

void selective_scan(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y) {
  const int64_t t = u.size(0), count = offsets.size(0) - 1;
  if (t == 0 || u.size(1) == 0 || count == 0) return;
  if (state && state.dtype() != DType::f32)
    return with_float(state.dtype(), [&](auto type) {
      using S = decltype(type);
      if constexpr (sizeof(S) == 2)
        scan_narrow<S>(stream, count, slots.view, *state.view, [&](const View& own, const View& wide) {
          selective_scan(stream, u, delta, A, B, C, D, z, delta_bias, offsets, Opt{&own},
                         OptInOut{&wide}, delta_softplus, y);
        });
    });
  with_float(u.dtype(), [&](auto type) {
    using T = decltype(type);
    const Scan<T> s = describe<T>(stream, u, delta, A, B, C, D, z, delta_bias, offsets, slots,
                                  state, delta_softplus, y);
    count == t ? step_any(stream, s) : scan_any(stream, s);
  });
}
KERNEL(selective_scan)

}  // namespace ss::cuda
