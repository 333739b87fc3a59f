// The gradients of s4d_scan over sequences that start from zero. Per channel and state, * conjugates:
//   g(t) = 2 W* dy(t) + (1 + E)* g(t+1),   du = sum of Re g + D dy
//   dW = 2 sum over t of dy(t) h(t)*,   dE = sum over t of g(t) h(t-1)*,   dD = sum over t of dy u
// Lanes are channels. A thread takes kLanes of them through all sequences: forward once, keeping states
// at the start of every chunk of kSteps tokens, then chunk by chunk from the last to the first, state
// after state: forward again with the state after each token kept, and back.
#include "lanes.h"
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kSteps = 32;

struct Back {
  In u, E, W;
  Opt D;
  In dy;
  Out du, dE, dW, dD;
  Sequences sequences;
  int64_t n;
};

// Per state and part (real, imaginary): [2 n][lane], as gather() has it.
struct Work {
  int64_t first, channels;
  float *E, *W, *h, *g, *dE, *dW;
  float *u, *dy, *du;  // [kSteps][lane]
  float* dD;           // [lane]
  float* starts;       // [chunks][2 n][lane]
};

template <class T>
void enter_tokens(const Back& s, const Work& w, int64_t t, int64_t steps, bool back) {
  const int64_t left = w.channels;
  for (int64_t i = 0; i < steps; i++) {
    const Vec u = load_some(s.u.row<T>(t + i) + w.first, left);
    store(w.u + i * kLanes, u);
    if (!back) continue;
    const Vec dy = load_some(s.dy.row<T>(t + i) + w.first, left);
    store(w.dy + i * kLanes, dy);
    store(w.dD, load(w.dD) + dy * u);
    store(w.du + i * kLanes, s.D ? load_some(s.D.data<float>() + w.first, left) * dy : Vec{});
  }
}

// h after one more token.
SS_INLINE void advance(Vec (&h)[2], const Vec (&e)[2], Vec u) {
  const Vec change = e[0] * h[0] - e[1] * h[1] + u, turned = e[0] * h[1] + e[1] * h[0];
  h[0] += change;
  h[1] += turned;
}

// One state of all lanes through a chunk and back; `at` is where it stands in [2 n][lane].
void return_state(const Work& w, int64_t at, const float* start, int64_t steps) {
  const Vec e[2] = {load(w.E + at), load(w.E + at + kLanes)};
  const Vec out[2] = {load(w.W + at), load(w.W + at + kLanes)};  // 2 W
  Vec h[kSteps + 1][2];
  h[0][0] = load(start + at), h[0][1] = load(start + at + kLanes);
  for (int64_t i = 0; i < steps; i++) {
    h[i + 1][0] = h[i][0], h[i + 1][1] = h[i][1];
    advance(h[i + 1], e, load(w.u + i * kLanes));
  }
  Vec g[2] = {load(w.g + at), load(w.g + at + kLanes)}, dE[2] = {}, dW[2] = {};
  for (int64_t i = steps; i-- > 0;) {
    const Vec dy = load(w.dy + i * kLanes);
    const Vec change = e[0] * g[0] + e[1] * g[1] + out[0] * dy;
    const Vec turned = e[0] * g[1] - e[1] * g[0] - out[1] * dy;
    g[0] += change;
    g[1] += turned;
    store(w.du + i * kLanes, load(w.du + i * kLanes) + g[0]);
    dW[0] += dy * h[i + 1][0];
    dW[1] -= dy * h[i + 1][1];
    dE[0] += g[0] * h[i][0] + g[1] * h[i][1];
    dE[1] += g[1] * h[i][0] - g[0] * h[i][1];
  }
  for (int part = 0; part < 2; part++) {
    const int64_t to = at + part * kLanes;
    store(w.g + to, g[part]);
    store(w.dE + to, load(w.dE + to) + dE[part]);
    store(w.dW + to, load(w.dW + to) + 2.0f * dW[part]);
  }
}

template <class T>
void return_sequence(const Back& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence);
  const int64_t square = padded(2 * s.n) * kLanes, stop = 2 * s.n * kLanes;
  const size_t bytes = static_cast<size_t>(square) * sizeof(float);
  const int64_t chunks = (end - begin + kSteps - 1) / kSteps;
  memset(w.h, 0, bytes), memset(w.g, 0, bytes);
  for (int64_t k = 0; k < chunks; k++) {
    memcpy(w.starts + k * square, w.h, bytes);
    if (k + 1 == chunks) break;
    enter_tokens<T>(s, w, begin + k * kSteps, kSteps, false);
    for (int64_t at = 0; at < stop; at += 2 * kLanes) {
      const Vec e[2] = {load(w.E + at), load(w.E + at + kLanes)};
      Vec h[2] = {load(w.h + at), load(w.h + at + kLanes)};
      for (int64_t i = 0; i < kSteps; i++) advance(h, e, load(w.u + i * kLanes));
      store(w.h + at, h[0]);
      store(w.h + at + kLanes, h[1]);
    }
  }
  for (int64_t k = chunks; k-- > 0;) {
    const int64_t t = begin + k * kSteps, steps = end - t < kSteps ? end - t : kSteps;
    enter_tokens<T>(s, w, t, steps, true);
    for (int64_t at = 0; at < stop; at += 2 * kLanes)
      return_state(w, at, w.starts + k * square, steps);
    for (int64_t i = 0; i < steps; i++)
      store_some(s.du.row<T>(t + i) + w.first, load(w.du + i * kLanes), w.channels);
  }
}

}  // namespace

void s4d_scan_backward(Stream& stream, In u, In E, In W, Opt D, In offsets, In dy, Out du, Out dE, Out dW,
                       Out dD) {
  const int64_t d = u.size(1), n = E.size(1), square = padded(2 * n) * kLanes;
  const Sequences sequences{offsets.data<int32_t>(), nullptr, offsets.size(0) - 1, 0};
  if (!sequences.check(stream, u.size(0))) return;
  int64_t longest = 0;
  for (int64_t i = 0; i < sequences.count; i++)
    if (const int64_t length = sequences.end(i) - sequences.begin(i); length > longest) longest = length;
  const Back back{u, E, W, D, dy, du, dE, dW, dD, sequences, n};
  const int64_t floats = (6 + (longest + kSteps - 1) / kSteps) * square + (3 * kSteps + 1) * kLanes;
  with_float(u.dtype(), [&](auto t) {
    using T = decltype(t);
    stream.parallel((d + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end, int worker) {
      float* at = static_cast<float*>(stream.scratch(worker, static_cast<size_t>(floats) * sizeof(float)));
      Work w{};
      const auto take = [&](int64_t size) {
        float* taken = at;
        at += size;
        return taken;
      };
      float **const states_of[] = {&w.E, &w.W, &w.h, &w.g, &w.dE, &w.dW};
      float **const tokens_of[] = {&w.u, &w.dy, &w.du};
      for (float** each : states_of) *each = take(square);
      for (float** each : tokens_of) *each = take(kSteps * kLanes);
      w.dD = take(kLanes), w.starts = at;
      for (int64_t block = begin; block < end; block++) {
        w.first = block * kLanes;
        w.channels = d - w.first < kLanes ? d - w.first : kLanes;
        gather(E.row<float>(w.first), E.stride(), w.channels, 2 * n, 1, w.E);
        gather(W.row<float>(w.first), W.stride(), w.channels, 2 * n, 2, w.W);
        memset(w.dE, 0, static_cast<size_t>(square) * sizeof(float));
        memset(w.dW, 0, static_cast<size_t>(square) * sizeof(float));
        store(w.dD, Vec{});
        for (int64_t i = 0; i < sequences.count; i++) return_sequence<T>(back, w, i);
        scatter(w.dE, w.channels, 2 * n, dE.row<float>(w.first));
        scatter(w.dW, w.channels, 2 * n, dW.row<float>(w.first));
        if (D) store_some(dD.data<float>() + w.first, load(w.dD), w.channels);
      }
    });
  });
}
KERNEL(s4d_scan_backward)

}  // namespace ss::SS_LEVEL
