// Per sequence and channel c, with group(c) = c / (d / g):
//   dt = softplus?(delta + delta_bias)
//   h  = exp(dt A) h + dt B u                    // [n]
//   y  = (sum over n of h C + D u) * silu(z)?
// Lanes are channels. A thread takes a block of channels of one sequence through all of its time,
// in tiles of kSteps tokens; states and A are turned to [n][lanes] once, so that a token costs one
// exp2, three products and no shuffles a state: the exp2 bounds the speed from n = 8 on. A decode
// step (one token) reads A and the state and writes the state, 12 n bytes a channel.
// A channel's arithmetic is the same wherever it lies and however its tokens are cut into calls.
#include "lanes.h"
#include "narrow.h"
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kSteps = 16;  // tokens of a tile: what is known of them stays in cache

// B or C for one tile: rows of n, one a token, the same for all lanes; or, constant, [n][lane].
template <bool Constant>
struct Coefficients {
  const float* rows;
  int64_t stride;
  SS_INLINE Coefficients vector(int64_t offset) const {  // those of the lanes that start there
    return {Constant ? rows + offset : rows, stride};
  }
  SS_INLINE auto at(int64_t step, int64_t j) const {
    if constexpr (Constant)
      return load(rows + j * kLanes);
    else
      return rows[step * stride + j];
  }
};

// kLanes channels through `steps` tokens: h is updated, y comes with D u and leaves with h C added.
template <bool ConstantB, bool ConstantC>
void advance(int64_t steps, int64_t n, int64_t width, const float* A, Coefficients<ConstantB> B,
             Coefficients<ConstantC> C, const float* dt, const float* dtu, float* y,
             float* __restrict h) {
  for (int64_t i = 0; i < steps; i++) {
    const Vec dt_i = load(dt + i * width), dtu_i = load(dtu + i * width);
    Vec y_i = load(y + i * width);
#pragma GCC unroll 8
    for (int64_t j = 0; j < n; j++) {
      const Vec h_j = exp2_mul_add(dt_i * load(A + j * kLanes), load(h + j * kLanes),
                                   rounded(dtu_i * B.at(i, j)));
      store(h + j * kLanes, h_j);
      y_i += h_j * C.at(i, j);
    }
    store(y + i * width, y_i);
  }
}

struct Scan {
  In u, delta, A, B, C;
  Opt D, z, delta_bias;
  OptInOut state;
  bool delta_softplus;
  Out y;
  Sequences sequences;
  int64_t n, width, group_channels, group_blocks;  // groups share B and C, so blocks end with them
};

// What a thread works in. A, D, bias and constant B and C stay while it stays with a block.
struct Work {
  int64_t first, channels, group;  // of the block
  float *A, *h, *B, *C;            // [vector][padded(n)][lane]; B and C per token [step][n]
  float *D, *bias;                 // [width]
  float *dt, *dtu, *y;             // [kSteps][width]
  float* row;                      // [width][n], of states that are not kept in f32

  SS_INLINE Work(Stream& stream, int worker, int64_t n, int64_t width, bool narrow) {
    const int64_t rows = padded(n);
    const size_t floats = (4 * rows + 2 + 3 * kSteps + narrow * n) * width;
    float* at = static_cast<float*>(stream.scratch(worker, floats * sizeof(float)));
    const auto take = [&](int64_t size) {
      float* taken = at;
      at += size;
      return taken;
    };
    A = take(rows * width), h = take(rows * width), B = take(rows * width), C = take(rows * width);
    D = take(width), bias = take(width);
    dt = take(kSteps * width), dtu = take(kSteps * width), y = take(kSteps * width);
    row = at;
  }
};

void enter_block(const Scan& s, int64_t block, Work& w) {
  w.group = block / s.group_blocks;
  const int64_t skipped = block % s.group_blocks * s.width, left = s.group_channels - skipped;
  w.first = w.group * s.group_channels + skipped;
  w.channels = left < s.width ? left : s.width;
  const float log2e = 0x1.715476p0f;  // for exp by powers of 2
  gather(s.A.row<float>(w.first), s.A.stride(), w.channels, s.n, log2e, w.A);
  if (s.B.rank() == 2)
    gather(s.B.row<float>(w.first), s.B.stride(), w.channels, s.n, 1, w.B);
  if (s.C.rank() == 2)
    gather(s.C.row<float>(w.first), s.C.stride(), w.channels, s.n, 1, w.C);
  for (int64_t i = 0; i < s.width; i++) {
    w.D[i] = s.D && i < w.channels ? s.D.data<float>()[w.first + i] : 0;
    w.bias[i] = s.delta_bias && i < w.channels ? s.delta_bias.data<float>()[w.first + i] : 0;
  }
}

template <class T>
void enter_tile(const Scan& s, const Work& w, int64_t t, int64_t steps) {
  for (int64_t i = 0; i < steps; i++) {
    const T* delta = s.delta.row<T>(t + i) + w.first;
    const T* u = s.u.row<T>(t + i) + w.first;
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      Vec dt = load_some(delta + c, w.channels - c) + load(w.bias + c);
      if (s.delta_softplus) dt = softplus(dt);
      const Vec u_c = load_some(u + c, w.channels - c);
      store(w.dt + i * s.width + c, dt);
      store(w.dtu + i * s.width + c, dt * u_c);
      store(w.y + i * s.width + c, load(w.D + c) * u_c);
    }
  }
}

// A cache line of each row of the tile that starts at t, while the one before is worked on. The
// rows are too far apart for the processor to see them coming: 20.6 ms without, 16.6 ms with this
// for 2,048 tokens of 1,536 channels and 16 states.
template <class T>
SS_INLINE void prefetch_tile(const Scan& s, const Work& w, int64_t t, int64_t end, int64_t c) {
  if (c % (64 / static_cast<int64_t>(sizeof(T))) != 0) return;
  for (int64_t i = t; i < end && i < t + kSteps; i++) {
    __builtin_prefetch(s.u.row<T>(i) + w.first + c, 0, 2);
    __builtin_prefetch(s.delta.row<T>(i) + w.first + c, 0, 2);
    if (s.z) __builtin_prefetch(s.z.row<T>(i) + w.first + c, 0, 2);
    __builtin_prefetch(s.y.row<T>(i) + w.first + c, 1, 2);
  }
}

template <class T>
void leave_tile(const Scan& s, const Work& w, int64_t t, int64_t steps) {
  for (int64_t i = 0; i < steps; i++) {
    T* y = s.y.row<T>(t + i) + w.first;
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      Vec v = load(w.y + i * s.width + c);
      if (s.z) v *= times_sigmoid(load_some(s.z.row<T>(t + i) + w.first + c, w.channels - c));
      store_some(y + c, v, w.channels - c);
    }
  }
}

// B or C of a tile: constant, as f32 in place, or turned to f32 in `rows`.
template <bool Constant, class T>
SS_INLINE Coefficients<Constant> coefficients(In x, const Work& w, int64_t n, int64_t t,
                                              int64_t steps, float* rows) {
  if constexpr (Constant) {
    return {rows, 0};
  } else if constexpr (sizeof(T) == sizeof(float)) {
    return {x.row<float>(t) + w.group * n, x.stride()};
  } else {
    for (int64_t i = 0; i < steps; i++)
      for (int64_t j = 0; j < n; j += kLanes)
        store_some(rows + i * n + j, load_some(x.row<T>(t + i) + w.group * n + j, n - j), n - j);
    return {rows, n};
  }
}

// The block's states of a slot, between calls and while they are scanned.
template <class S>
SS_INLINE void load_states(const Scan& s, const Work& w, int64_t slot) {
  const S* from = s.state.row<S>(slot) + w.first * s.n;
  if constexpr (sizeof(S) == sizeof(float)) {
    gather(from, s.n, w.channels, s.n, 1, w.h);
  } else {
    widen(from, w.channels * s.n, w.row);
    gather(w.row, s.n, w.channels, s.n, 1, w.h);
  }
}
template <class S>
SS_INLINE void store_states(const Scan& s, const Work& w, int64_t slot) {
  S* to = s.state.row<S>(slot) + w.first * s.n;
  if constexpr (sizeof(S) == sizeof(float)) {
    scatter(w.h, w.channels, s.n, to);
  } else {
    scatter(w.h, w.channels, s.n, w.row);
    narrow(w.row, w.channels, s.n, to);
  }
}

template <class T, bool ConstantB, bool ConstantC>
void scan_sequence(const Scan& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence), n = s.n;
  if (begin == end) return;
  const int64_t slot = s.sequences.slot(sequence);
  if (slot >= 0)
    with_float(s.state.dtype(), [&](auto type) { load_states<decltype(type)>(s, w, slot); });
  else
    memset(w.h, 0, padded(n) * s.width * sizeof(float));
  for (int64_t t = begin; t < end; t += kSteps) {
    const int64_t steps = end - t < kSteps ? end - t : kSteps;
    enter_tile<T>(s, w, t, steps);
    const auto B = coefficients<ConstantB, T>(s.B, w, n, t, steps, w.B);
    const auto C = coefficients<ConstantC, T>(s.C, w, n, t, steps, w.C);
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      prefetch_tile<T>(s, w, t + kSteps, end, c);
      const int64_t at = c * padded(n);
      advance(steps, n, s.width, w.A + at, B.vector(at), C.vector(at), w.dt + c, w.dtu + c, w.y + c,
              w.h + at);
    }
    leave_tile<T>(s, w, t, steps);
  }
  if (slot >= 0)
    with_float(s.state.dtype(), [&](auto type) { store_states<decltype(type)>(s, w, slot); });
}

}  // namespace

void selective_scan(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y) {
  const int64_t d = u.size(1), n = A.size(1);
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  const Sequences sequences = ss::sequences(offsets, slots, state);
  if (d == 0 || !sequences.check(stream, u.size(0))) return;
  if (groups == 0 || d % groups != 0)
    return stream.fail("B and C have %d groups, expected a divisor of %d, the channels of u",
                       int(groups), int(d));
  const int64_t group_channels = d / groups, rows = groups * sequences.count;
  const int64_t width = block_width(group_channels, rows, stream.threads());
  const int64_t group_blocks = (group_channels + width - 1) / width;
  const Scan scan{u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, y, sequences,
                  n, width, group_channels, group_blocks};
  const auto run = [&](auto sequence_fn) {
    // All sequences of a block follow each other, so that a thread enters few blocks.
    stream.parallel(group_blocks * rows, 1, [&](int64_t begin, int64_t end, int worker) {
      Work w(stream, worker, n, width, state && state.dtype() != DType::f32);
      for (int64_t i = begin; i < end; i++) {
        if (i == begin || i % sequences.count == 0) enter_block(scan, i / sequences.count, w);
        sequence_fn(scan, w, i % sequences.count);
      }
    });
  };
  with_float(u.dtype(), [&](auto t) {
    using T = decltype(t);
    if (B.rank() == 3)
      C.rank() == 3 ? run(scan_sequence<T, false, false>) : run(scan_sequence<T, false, true>);
    else
      C.rank() == 3 ? run(scan_sequence<T, true, false>) : run(scan_sequence<T, true, true>);
  });
}
KERNEL(selective_scan)

}  // namespace ss::SS_LEVEL
