// The gradients of selective_scan over sequences that start from zero. Per channel, with
// g = dy silu(z) and p_t = C_t h_t + D u_t:
//   dh_t   = C_t g_t + exp(dt_{t+1} A) dh_{t+1}                      // [n]
//   dC    += g_t h_t,  dB += dh_t dt u,  dA += dh_t dt e,  e = exp(dt A) h_{t-1} = h_t - dt B u
//   q      = dh_t B,  du = D g + dt q,  d(dt) = u q + sum over n of dh_t A e,  dD += g u
//   ddelta = d(dt) sigmoid(delta + bias),  dz = dy p silu'(z),  y = p silu(z)
// Lanes are channels. A thread takes a block of channels of one group through all sequences: forward
// once, keeping the states at the start of every chunk of kChunk tokens, then chunk by chunk from the
// last to the first: forward again with every state of the chunk kept, and back. dB and dC are
// summed over a block's channels, and over blocks in order at the end.
#include "room.h"
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kChunk = 32;                   // tokens
constexpr int64_t kWidth = 64;                   // channels of a block
constexpr int64_t kVectors = kWidth / kLanes;    // of a block

struct Scan {
  In u, delta, A, B, C;
  Opt D, z, bias;
  In dy;
  OptInOut y;
  bool softplus;
  Out du, ddelta, dA, dB, dC, dD, dz, dbias;
  Sequences sequences;
  int64_t n, groups, group_channels, group_blocks;
  float* shares;  // [group block][t][groups][2][n]: dB and dC of one block's channels
};

// Per vector of lanes: [n][kLanes], unless said otherwise.
struct Work {
  int64_t first, channels, group, block;  // block: within the group
  int64_t n;
  float *A, *B, *C;         // [kVectors][n][lane]; B and C where they are constant
  float *dA, *dB, *dC, *dh;  // [kVectors][n][lane]
  float *D, *bias, *dD, *dbias;  // [kWidth]
  float* states;            // [kChunk + 1][n][lane]: of one vector
  float* coefficients;      // [kChunk][2][n]: B and C where they are per token
  float* shares;            // [kChunk][2][n][lane]
  float *dt, *dtu, *u, *g, *p, *dp;  // [kChunk][lane]

  static int64_t floats(int64_t n) {
    const int64_t square = n * kLanes;
    return 7 * kVectors * square + 4 * kWidth + (kChunk + 1) * square + 2 * kChunk * n +
           2 * kChunk * square + 6 * kChunk * kLanes;
  }
  Work(float* at, int64_t n) : n(n) {
    const int64_t square = n * kLanes;
    const auto take = [&](int64_t size) {
      float* taken = at;
      at += size;
      return taken;
    };
    float **const states_of[] = {&A, &B, &C, &dA, &dB, &dC, &dh}, **const channels_of[] = {&D, &bias, &dD, &dbias},
           **const tokens_of[] = {&dt, &dtu, &u, &g, &p, &dp};
    for (float** each : states_of) *each = take(kVectors * square);
    for (float** each : channels_of) *each = take(kWidth);
    states = take((kChunk + 1) * square);
    shares = take(2 * kChunk * square);
    for (float** each : tokens_of) *each = take(kChunk * kLanes);
    coefficients = take(2 * kChunk * n);
  }
};

// Rows of n of the block's channels, lane by lane; lanes without a channel get zeros.
void gather(In from, const Work& w, float* to) {
  for (int64_t v = 0; v < kVectors; v++)
    for (int64_t i = 0; i < kLanes; i++) {
      const int64_t c = v * kLanes + i;
      const float* row = c < w.channels ? from.row<float>(w.first + c) : nullptr;
      for (int64_t j = 0; j < w.n; j++) to[(v * w.n + j) * kLanes + i] = row ? row[j] : 0;
    }
}
void scatter(const float* from, const Work& w, Out to) {
  for (int64_t c = 0; c < w.channels; c++)
    for (int64_t j = 0; j < w.n; j++)
      to.row<float>(w.first + c)[j] = from[(c / kLanes * w.n + j) * kLanes + c % kLanes];
}

void enter_block(const Scan& s, int64_t number, Work& w) {
  w.group = number / s.group_blocks, w.block = number % s.group_blocks;
  const int64_t skipped = w.block * kWidth, left = s.group_channels - skipped;
  w.first = w.group * s.group_channels + skipped;
  w.channels = left < kWidth ? left : kWidth;
  gather(s.A, w, w.A);
  if (s.B.rank() == 2) gather(s.B, w, w.B);
  if (s.C.rank() == 2) gather(s.C, w, w.C);
  const auto bytes = static_cast<size_t>(kVectors * s.n * kLanes) * sizeof(float);
  memset(w.dA, 0, bytes), memset(w.dB, 0, bytes), memset(w.dC, 0, bytes);
  for (int64_t i = 0; i < kWidth; i++) {
    w.D[i] = s.D && i < w.channels ? s.D.data<float>()[w.first + i] : 0;
    w.bias[i] = s.bias && i < w.channels ? s.bias.data<float>()[w.first + i] : 0;
    w.dD[i] = w.dbias[i] = 0;
  }
}

void leave_block(const Scan& s, const Work& w) {
  scatter(w.dA, w, s.dA);
  if (s.B.rank() == 2) scatter(w.dB, w, s.dB);
  if (s.C.rank() == 2) scatter(w.dC, w, s.dC);
  for (int64_t i = 0; i < w.channels; i++) {
    if (s.D) s.dD.data<float>()[w.first + i] = w.dD[i];
    if (s.bias) s.dbias.data<float>()[w.first + i] = w.dbias[i];
  }
}

// dt and dt u of one vector's channels in tokens [t, t + steps).
template <class T>
void enter_tokens(const Scan& s, const Work& w, int64_t v, int64_t t, int64_t steps) {
  const int64_t c = v * kLanes, left = w.channels - c;
  for (int64_t i = 0; i < steps; i++) {
    Vec dt = load_some(s.delta.row<T>(t + i) + w.first + c, left) + load(w.bias + c);
    if (s.softplus) dt = softplus(dt);
    const Vec u = load_some(s.u.row<T>(t + i) + w.first + c, left);
    store(w.dt + i * kLanes, dt);
    store(w.u + i * kLanes, u);
    store(w.dtu + i * kLanes, dt * u);
  }
}

template <class T>
void enter_coefficients(const Scan& s, const Work& w, int64_t t, int64_t steps) {
  const auto copy = [&](In x, int64_t which) {
    for (int64_t i = 0; i < steps && x.rank() == 3; i++)
      for (int64_t j = 0; j < w.n; j++)
        w.coefficients[(2 * i + which) * w.n + j] = to_float(x.row<T>(t + i)[w.group * w.n + j]);
  };
  copy(s.B, 0);
  copy(s.C, 1);
}

// B or C of state j at step i, for the lanes of vector v.
template <bool Constant, int Which>
SS_INLINE Vec coefficient(const Work& w, int64_t v, int64_t i, int64_t j) {
  if constexpr (Constant)
    return load((Which ? w.C : w.B) + (v * w.n + j) * kLanes);
  else
    return splat(w.coefficients[(2 * i + Which) * w.n + j]);
}

// h through `steps` tokens from `from`; each state goes to `to`, which moves on by `stride`.
template <bool ConstantB>
void forward(const Work& w, int64_t v, int64_t steps, const float* from, float* to, int64_t stride) {
  const float log2e = 0x1.715476p0f;
  const float* A = w.A + v * w.n * kLanes;
  for (int64_t i = 0; i < steps; i++) {
    const Vec dt = load(w.dt + i * kLanes) * log2e, dtu = load(w.dtu + i * kLanes);
    for (int64_t j = 0; j < w.n; j++)
      store(to + j * kLanes,
            exp2_mul_add(dt * load(A + j * kLanes), load(from + j * kLanes),
                         dtu * coefficient<ConstantB, 0>(w, v, i, j)));
    from = to;
    to += stride;
  }
}

// One vector's channels back through a chunk: its states are in w.states, the first being the one
// it starts from. `dh` has exp(dt A) dh of the token after it.
template <bool ConstantB, bool ConstantC>
void back(const Work& w, int64_t v, int64_t steps) {
  const int64_t square = w.n * kLanes, at = v * square;
  const float* A = w.A + at;
  float *dh = w.dh + at, *dA = w.dA + at, *dB = w.dB + at, *dC = w.dC + at;
  for (int64_t i = steps - 1; i >= 0; i--) {
    const Vec dt = load(w.dt + i * kLanes), dtu = load(w.dtu + i * kLanes),
              g = load(w.g + i * kLanes), u = load(w.u + i * kLanes);
    const float* h = w.states + (i + 1) * square;
    float *share_B = w.shares + 2 * i * square, *share_C = share_B + square;
    Vec p{}, q{}, through{};
    for (int64_t j = 0; j < square; j += kLanes) {
      const Vec B = coefficient<ConstantB, 0>(w, v, i, j / kLanes),
                C = coefficient<ConstantC, 1>(w, v, i, j / kLanes);
      const Vec h_j = load(h + j), A_j = load(A + j), dh_j = C * g + load(dh + j);
      const Vec e = h_j - dtu * B, flow = dh_j * e;
      p += C * h_j;
      q += dh_j * B;
      through += flow * A_j;
      store(dA + j, load(dA + j) + flow * dt);
      if constexpr (ConstantB)
        store(dB + j, load(dB + j) + dh_j * dtu);
      else
        store(share_B + j, load(share_B + j) + dh_j * dtu);
      if constexpr (ConstantC)
        store(dC + j, load(dC + j) + h_j * g);
      else
        store(share_C + j, load(share_C + j) + h_j * g);
      store(dh + j, exp(dt * A_j) * dh_j);
    }
    store(w.p + i * kLanes, p);
    store(w.dp + i * kLanes, q * u + through);  // d(dt)
    store(w.dtu + i * kLanes, q * dt);          // du without D g
  }
}

template <class T>
void enter_gradients(const Scan& s, const Work& w, int64_t v, int64_t t, int64_t steps) {
  const int64_t c = v * kLanes, left = w.channels - c;
  for (int64_t i = 0; i < steps; i++) {
    Vec g = load_some(s.dy.row<T>(t + i) + w.first + c, left);
    if (s.z) g *= times_sigmoid(load_some(s.z.row<T>(t + i) + w.first + c, left));
    store(w.g + i * kLanes, g);
  }
}

template <class T>
void leave_tokens(const Scan& s, const Work& w, int64_t v, int64_t t, int64_t steps) {
  const int64_t c = v * kLanes, left = w.channels - c, x = w.first + c;
  Vec dD{}, dbias{};
  for (int64_t i = 0; i < steps; i++) {
    const Vec g = load(w.g + i * kLanes), u = load(w.u + i * kLanes), D = load(w.D + c);
    store_some(s.du.row<T>(t + i) + x, load(w.dtu + i * kLanes) + D * g, left);
    Vec ddelta = load(w.dp + i * kLanes);
    if (s.softplus) {
      const Vec before = load_some(s.delta.row<T>(t + i) + x, left) + load(w.bias + c);
      ddelta = ddelta / (1.0f + exp(-before));
    }
    store_some(s.ddelta.row<T>(t + i) + x, ddelta, left);
    dD += g * u;
    dbias += ddelta;
    const Vec y = load(w.p + i * kLanes) + D * u;
    if (s.y && !s.z) store_some(s.y.row<T>(t + i) + x, y, left);
    if (!s.z) continue;
    const Vec z = load_some(s.z.row<T>(t + i) + x, left), gate = 1.0f / (1.0f + exp(-z));
    if (s.y) store_some(s.y.row<T>(t + i) + x, y * (z * gate), left);
    const Vec slope = gate * (1.0f + z * (1.0f - gate));
    store_some(s.dz.row<T>(t + i) + x, load_some(s.dy.row<T>(t + i) + x, left) * y * slope, left);
  }
  store(w.dD + c, load(w.dD + c) + dD);
  store(w.dbias + c, load(w.dbias + c) + dbias);
}

// What the block's channels add to dB and dC of the chunk's tokens.
void leave_coefficients(const Scan& s, const Work& w, int64_t t, int64_t steps) {
  const int64_t row = s.groups * 2 * w.n;
  float* to = s.shares + (w.block * s.u.size(0) + t) * row + w.group * 2 * w.n;
  for (int64_t i = 0; i < steps; i++)
    for (int64_t j = 0; j < 2 * w.n; j++)
      to[i * row + j] = sum(load(w.shares + (2 * i * w.n + j) * kLanes));
}

template <class T, bool ConstantB, bool ConstantC>
void walk(const Scan& s, const Work& w, int64_t sequence, float* starts) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence);
  if (begin == end) return;
  const int64_t square = w.n * kLanes, chunks = (end - begin + kChunk - 1) / kChunk;
  const int64_t vectors = (w.channels + kLanes - 1) / kLanes;
  const auto bytes = static_cast<size_t>(square) * sizeof(float);
  const auto steps_of = [&](int64_t chunk) {
    const int64_t left = end - begin - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  };
  // starts: [chunk][vector][n][lane]
  memset(starts, 0, bytes * static_cast<size_t>(kVectors));
  for (int64_t chunk = 0; chunk + 1 < chunks; chunk++) {
    const int64_t t = begin + chunk * kChunk;
    enter_coefficients<T>(s, w, t, kChunk);
    for (int64_t v = 0; v < vectors; v++) {
      float *from = starts + (chunk * kVectors + v) * square, *to = from + kVectors * square;
      enter_tokens<T>(s, w, v, t, kChunk);
      forward<ConstantB>(w, v, kChunk, from, to, 0);
    }
  }
  memset(w.dh, 0, bytes * static_cast<size_t>(kVectors));
  for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
    const int64_t t = begin + chunk * kChunk, steps = steps_of(chunk);
    enter_coefficients<T>(s, w, t, steps);
    memset(w.shares, 0, 2 * kChunk * bytes);
    for (int64_t v = 0; v < vectors; v++) {
      memcpy(w.states, starts + (chunk * kVectors + v) * square, bytes);
      enter_tokens<T>(s, w, v, t, steps);
      enter_gradients<T>(s, w, v, t, steps);
      forward<ConstantB>(w, v, steps, w.states, w.states + square, square);
      back<ConstantB, ConstantC>(w, v, steps);
      leave_tokens<T>(s, w, v, t, steps);
    }
    if (!ConstantB || !ConstantC) leave_coefficients(s, w, t, steps);
  }
}

// dB and dC: the shares of all blocks of a group, in order.
template <class T>
void add_shares(Stream& stream, const Scan& s) {
  const int64_t t = s.u.size(0), row = s.groups * 2 * s.n;
  stream.parallel(t, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t at = 0; at < row; at++) {
        const bool of_C = at / s.n % 2;
        if ((of_C ? s.C : s.B).rank() == 2) continue;
        float total = 0;
        for (int64_t block = 0; block < s.group_blocks; block++)
          total += s.shares[(block * t + i) * row + at];
        const int64_t column = at / (2 * s.n) * s.n + at % s.n;
        from_float((of_C ? s.dC : s.dB).row<T>(i)[column], total);
      }
  });
}

}  // namespace

void selective_scan_backward(Stream& stream, In u, In delta, In A, In B, In C, Opt D, Opt z,
                             Opt delta_bias, In offsets, In dy, OptInOut y, bool delta_softplus, Out du,
                             Out ddelta, Out dA, Out dB, Out dC, Out dD, Out dz, Out ddelta_bias) {
  const int64_t t = u.size(0), d = u.size(1), n = A.size(1);
  const int64_t groups = B.rank() == 3 ? B.size(1) : C.rank() == 3 ? C.size(1) : 1;
  const Sequences sequences = ss::sequences(offsets, Opt{nullptr}, OptInOut{nullptr});
  if (!sequences.check(stream, t)) return;
  if (groups == 0 || d % groups != 0)
    return stream.fail("B and C have %d groups, expected a divisor of %d, the channels of u",
                       int(groups), int(d));
  int64_t longest = 0;
  for (int64_t i = 0; i < sequences.count; i++) {
    const int64_t length = sequences.end(i) - sequences.begin(i);
    longest = length > longest ? length : longest;
  }
  const int64_t starts = ((longest + kChunk - 1) / kChunk + 1) * kVectors * n * kLanes;
  const int64_t group_channels = d / groups, group_blocks = (group_channels + kWidth - 1) / kWidth;
  const bool constant = B.rank() == 2 && C.rank() == 2;
  const Room shares(stream, constant ? 0 : group_blocks * t * groups * 2 * n);
  if (!shares) return;
  const Scan s{u,  delta, A,  B,  C,  D,  z,  delta_bias, dy, y, delta_softplus, du, ddelta,
               dA, dB,    dC, dD, dz, ddelta_bias, sequences, n, groups, group_channels,
               group_blocks, shares.floats()};
  const auto run = [&](auto walk_fn) {
    stream.parallel(groups * group_blocks, 1, [&](int64_t first, int64_t last, int worker) {
      float* memory = static_cast<float*>(stream.scratch(
          worker, static_cast<size_t>(Work::floats(n) + starts) * sizeof(float)));
      Work w(memory + starts, n);
      for (int64_t block = first; block < last; block++) {
        enter_block(s, block, w);
        for (int64_t i = 0; i < sequences.count; i++) walk_fn(s, w, i, memory);
        leave_block(s, w);
      }
    });
  };
  with_float(u.dtype(), [&](auto type) {
    using T = decltype(type);
    if (B.rank() == 3)
      C.rank() == 3 ? run(walk<T, false, false>) : run(walk<T, false, true>);
    else
      C.rank() == 3 ? run(walk<T, true, false>) : run(walk<T, true, true>);
    if (!constant) add_shares<T>(stream, s);
  });
}
KERNEL(selective_scan_backward)

}  // namespace ss::SS_LEVEL
