// Per sequence and channel c, with group(c) = c / (d / g):
//   dt = softplus?(delta + delta_bias)
//   h  = exp(dt A) h + dt B u                    // [n]
//   y  = (sum over n of h C + D u) * silu(z)?
// Lanes are channels. A thread takes kBlock channels of a sequence through all of its time, in
// tiles of kSteps tokens; states and A are turned to [n][lanes] once, so that a step of one state
// is one exp2, three products and no shuffles. The exp2 bounds the speed from n = 8 on; a decode
// step (one token) reads A and the state and writes the state, 12 n bytes a channel.
// A channel's arithmetic is the same wherever it lies and however its tokens are cut into calls.
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int kBlock = 32;  // channels: whole cache lines of each row, for 16-bit types too
constexpr int kVecs = kBlock / kLanes;
constexpr int kSteps = 16;

// v[i][j] <-> v[j][i], by swapping ever smaller off-diagonal squares.
template <int Half, int... I>
SS_INLINE void swap_squares(Vec (&v)[kLanes], Indices<I...>) {
  for (int i = 0; i < kLanes; i++) {
    if (i & Half) continue;
    const Vec a = v[i], b = v[i + Half];
    v[i] = __builtin_shufflevector(a, b, (I & Half ? kLanes + I - Half : I)...);
    v[i + Half] = __builtin_shufflevector(a, b, (I & Half ? kLanes + I : I + Half)...);
  }
}
template <int Half = kLanes / 2>
SS_INLINE void transpose(Vec (&v)[kLanes]) {
  swap_squares<Half>(v, typename MakeIndices<kLanes>::type{});
  if constexpr (Half > 1) transpose<Half / 2>(v);
}

// `channels` rows of n -> to[vec][n][lane], times scale; the last vector's missing rows are zero.
void gather(const float* from, int64_t stride, int64_t channels, int64_t n, float scale, float* to) {
  for (int64_t c = 0; c < channels; c += kLanes, to += n * kLanes)
    for (int64_t j = 0; j < n; j += kLanes) {
      Vec v[kLanes];
      for (int i = 0; i < kLanes; i++)
        v[i] = c + i < channels ? load_some(from + (c + i) * stride + j, n - j) : Vec{};
      transpose(v);
      for (int i = 0; i < kLanes && j + i < n; i++) store(to + (j + i) * kLanes, v[i] * scale);
    }
}

// The way back, to dense rows.
void scatter(const float* from, int64_t channels, int64_t n, float* to) {
  for (int64_t c = 0; c < channels; c += kLanes, from += n * kLanes)
    for (int64_t j = 0; j < n; j += kLanes) {
      Vec v[kLanes];
      for (int i = 0; i < kLanes; i++) v[i] = j + i < n ? load(from + (j + i) * kLanes) : Vec{};
      transpose(v);
      for (int i = 0; i < kLanes && c + i < channels; i++)
        store_some(to + (c + i) * n + j, v[i], n - j);
    }
}

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
void advance(int64_t steps, int64_t n, const float* A, Coefficients<ConstantB> B,
             Coefficients<ConstantC> C, const float* dt, const float* dtu, float* y,
             float* __restrict h) {
  for (int64_t i = 0; i < steps; i++) {
    const Vec dt_i = load(dt + i * kBlock), dtu_i = load(dtu + i * kBlock);
    Vec y_i = load(y + i * kBlock);
#pragma GCC unroll 8
    for (int64_t j = 0; j < n; j++) {
      const Vec decay = exp2(dt_i * load(A + j * kLanes));
      const Vec h_j = decay * load(h + j * kLanes) + rounded(dtu_i * B.at(i, j));
      store(h + j * kLanes, h_j);
      y_i += h_j * C.at(i, j);
    }
    store(y + i * kBlock, y_i);
  }
}

struct Scan {
  In u, delta, A, B, C;
  Opt D, z, delta_bias;
  OptInOut state;
  bool delta_softplus;
  Out y;
  Sequences sequences;
  int64_t n, group_channels, group_blocks;  // blocks end where a group does: they share B and C
};

// What a thread works in. A, D, bias and constant B and C stay while it stays with a block.
struct Work {
  int64_t first, channels, group;  // of the block
  float *A, *h, *B, *C;            // [vec][n][lane]; B and C per token [step][n]
  float *D, *bias;                 // [kBlock]
  float *dt, *dtu, *y;             // [kSteps][kBlock]

  static SS_INLINE size_t bytes(int64_t n) {
    return (4 * kBlock * n + (2 + 3 * kSteps) * kBlock) * sizeof(float);
  }
  explicit SS_INLINE Work(float* at, int64_t n) {
    float** arrays[] = {&A, &h, &B, &C, &D, &bias, &dt, &dtu, &y};
    for (int i = 0; i < 9; i++) {
      *arrays[i] = at;
      at += kBlock * (i < 4 ? n : i < 6 ? 1 : kSteps);
    }
  }
};

void enter_block(const Scan& s, int64_t block, Work& w) {
  w.group = block / s.group_blocks;
  const int64_t skipped = block % s.group_blocks * kBlock, left = s.group_channels - skipped;
  w.first = w.group * s.group_channels + skipped;
  w.channels = left < kBlock ? left : kBlock;
  const float log2e = 0x1.715476p0f;
  gather(s.A.row<float>(w.first), s.A.stride(), w.channels, s.n, log2e, w.A);
  if (s.B.rank() == 2)
    gather(s.B.row<float>(w.first), s.B.stride(), w.channels, s.n, 1, w.B);
  if (s.C.rank() == 2)
    gather(s.C.row<float>(w.first), s.C.stride(), w.channels, s.n, 1, w.C);
  for (int i = 0; i < kBlock; i++) {
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
      store(w.dt + i * kBlock + c, dt);
      store(w.dtu + i * kBlock + c, dt * u_c);
      store(w.y + i * kBlock + c, load(w.D + c) * u_c);
    }
  }
}

template <class T>
void leave_tile(const Scan& s, const Work& w, int64_t t, int64_t steps) {
  for (int64_t i = 0; i < steps; i++) {
    T* y = s.y.row<T>(t + i) + w.first;
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      Vec v = load(w.y + i * kBlock + c);
      if (s.z) v *= silu(load_some(s.z.row<T>(t + i) + w.first + c, w.channels - c));
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

template <class T, bool ConstantB, bool ConstantC>
void scan_sequence(const Scan& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence), n = s.n;
  if (begin == end) return;
  const int64_t slot = s.sequences.slot(sequence);
  if (slot >= 0)
    gather(s.state.row<float>(slot) + w.first * n, n, w.channels, n, 1, w.h);
  else
    memset(w.h, 0, kBlock * n * sizeof(float));
  for (int64_t t = begin; t < end; t += kSteps) {
    const int64_t steps = end - t < kSteps ? end - t : kSteps;
    enter_tile<T>(s, w, t, steps);
    const auto B = coefficients<ConstantB, T>(s.B, w, n, t, steps, w.B);
    const auto C = coefficients<ConstantC, T>(s.C, w, n, t, steps, w.C);
    for (int64_t c = 0; c < w.channels; c += kLanes)
      advance(steps, n, w.A + c * n, B.vector(c * n), C.vector(c * n), w.dt + c, w.dtu + c, w.y + c,
              w.h + c * n);
    leave_tile<T>(s, w, t, steps);
  }
  if (slot >= 0) scatter(w.h, w.channels, n, s.state.row<float>(slot) + w.first * n);
}

}  // namespace

void selective_scan(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y) {
  const int64_t d = u.size(1), n = A.size(1);
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  const Sequences sequences = ss::sequences(offsets, slots, state);
  if (d == 0 || !sequences.check(stream, u.size(0))) return;
  const int64_t group_channels = d / groups, group_blocks = (group_channels + kBlock - 1) / kBlock;
  const Scan scan{u,     delta,          A, B,         C, D,              z,           delta_bias,
                  state, delta_softplus, y, sequences, n, group_channels, group_blocks};
  const auto run = [&](auto sequence_fn) {
    // All sequences of a block follow each other, so that a thread enters few blocks.
    stream.parallel(groups * group_blocks * sequences.count, 1,
                    [&](int64_t begin, int64_t end, int worker) {
                      Work w(static_cast<float*>(stream.scratch(worker, Work::bytes(n))), n);
                      for (int64_t i = begin; i < end; i++) {
                        if (i == begin || i % sequences.count == 0)
                          enter_block(scan, i / sequences.count, w);
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
