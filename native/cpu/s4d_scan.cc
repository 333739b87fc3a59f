// Per sequence and channel c:
//   h = h + E h + u                              // complex [n]
//   y = 2 Re(sum over n of W h) + D u
// Lanes are channels. A thread takes a block of channels of one sequence through all of its time, in
// tiles of kSteps tokens; a few states at a time go through a whole tile in registers, so that the
// eight products of a state and token are what it costs: 6 loads and 2 stores more made it 2.3 times
// slower. E h is added as a whole: slow decay keeps its rate, and h is rounded once.
// A channel's arithmetic is the same wherever it lies and however its tokens are cut into calls.
#include "lanes.h"
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kSteps = 32;
// Six registers a state, of 32 or 16.
#if defined(__AVX512F__)
constexpr int kTogether = 4;
#else
constexpr int kTogether = 2;
#endif

struct Scan {
  In u, E, W;
  Opt D;
  OptInOut state;
  Out y;
  Sequences sequences;
  int64_t d, n, width;
};

// What a thread works in. E, 2 W and D stay while it stays with a block.
struct Work {
  int64_t first, channels;  // of the block
  float *E, *W, *h;         // [vector][padded(2 n)][lane]: real, then imaginary part of each state
  float* D;                 // [width]
  float *u, *y;             // [kSteps][width]

  SS_INLINE Work(Stream& stream, int worker, int64_t n, int64_t width) {
    const int64_t rows = padded(2 * n);
    float* at = static_cast<float*>(
        stream.scratch(worker, (3 * rows + 1 + 2 * kSteps) * width * sizeof(float)));
    const auto take = [&](int64_t size) {
      float* taken = at;
      at += size;
      return taken;
    };
    E = take(rows * width), W = take(rows * width), h = take(rows * width);
    D = take(width), u = take(kSteps * width), y = take(kSteps * width);
  }
};

void enter_block(const Scan& s, int64_t block, Work& w) {
  w.first = block * s.width;
  w.channels = s.d - w.first < s.width ? s.d - w.first : s.width;
  gather(s.E.row<float>(w.first), s.E.stride(), w.channels, 2 * s.n, 1, w.E);
  gather(s.W.row<float>(w.first), s.W.stride(), w.channels, 2 * s.n, 2, w.W);
  for (int64_t i = 0; i < s.width; i++)
    w.D[i] = s.D && i < w.channels ? s.D.data<float>()[w.first + i] : 0;
}

// Count states of kLanes channels through `steps` tokens.
template <int Count>
SS_INLINE void advance(int64_t steps, int64_t width, const float* E, const float* W, const float* u,
                       float* y, float* h) {
  Vec e[2 * Count], w[2 * Count], x[2 * Count];
#pragma GCC unroll 8
  for (int j = 0; j < 2 * Count; j++) {
    e[j] = load(E + j * kLanes);
    w[j] = load(W + j * kLanes);
    x[j] = load(h + j * kLanes);
  }
  for (int64_t i = 0; i < steps; i++) {
    const Vec u_i = load(u + i * width);
    Vec y_i = load(y + i * width);
#pragma GCC unroll 4
    for (int j = 0; j < 2 * Count; j += 2) {
      Vec change = e[j] * x[j] + u_i;
      change -= e[j + 1] * x[j + 1];
      const Vec turned = e[j] * x[j + 1] + rounded(e[j + 1] * x[j]);
      x[j] += change;
      x[j + 1] += turned;
      y_i += w[j] * x[j];
      y_i -= w[j + 1] * x[j + 1];
    }
    store(y + i * width, y_i);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 2 * Count; j++) store(h + j * kLanes, x[j]);
}

template <class T>
void scan_sequence(const Scan& s, const Work& w, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence);
  if (begin == end) return;
  const int64_t slot = s.sequences.slot(sequence), row = 2 * s.n, rows = padded(row);
  if (slot >= 0)
    gather(s.state.row<float>(slot) + w.first * row, row, w.channels, row, 1, w.h);
  else
    memset(w.h, 0, rows * s.width * sizeof(float));
  for (int64_t t = begin; t < end; t += kSteps) {
    const int64_t steps = end - t < kSteps ? end - t : kSteps;
    for (int64_t i = 0; i < steps; i++) {
      const T* u = s.u.row<T>(t + i) + w.first;
      if (t + i + kSteps < end)  // rows are far apart: the processor does not see them coming
        for (int64_t c = 0; c < w.channels; c += 64 / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(s.u.row<T>(t + i + kSteps) + w.first + c, 0, 2);
      for (int64_t c = 0; c < w.channels; c += kLanes) {
        const Vec u_c = load_some(u + c, w.channels - c);
        store(w.u + i * s.width + c, u_c);
        store(w.y + i * s.width + c, load(w.D + c) * u_c);
      }
    }
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      int64_t j = 0, at = c * rows;
      for (; j + kTogether <= s.n; j += kTogether, at += 2 * kTogether * kLanes)
        advance<kTogether>(steps, s.width, w.E + at, w.W + at, w.u + c, w.y + c, w.h + at);
      for (; j < s.n; j++, at += 2 * kLanes)
        advance<1>(steps, s.width, w.E + at, w.W + at, w.u + c, w.y + c, w.h + at);
    }
    for (int64_t i = 0; i < steps; i++)
      for (int64_t c = 0; c < w.channels; c += kLanes)
        store_some(s.y.row<T>(t + i) + w.first + c, load(w.y + i * s.width + c), w.channels - c);
  }
  if (slot >= 0) scatter(w.h, w.channels, row, s.state.row<float>(slot) + w.first * row);
}

}  // namespace

void s4d_scan(Stream& stream, In u, In E, In W, Opt D, In offsets, Opt slots, OptInOut state, Out y) {
  const int64_t d = u.size(1), n = E.size(1);
  const Sequences sequences = ss::sequences(offsets, slots, state);
  if (d == 0 || !sequences.check(stream, u.size(0))) return;
  const int64_t width = block_width(d, sequences.count, stream.threads());
  const int64_t blocks = (d + width - 1) / width;
  const Scan scan{u, E, W, D, state, y, sequences, d, n, width};
  with_float(u.dtype(), [&](auto t) {
    using T = decltype(t);
    // All sequences of a block follow each other, so that a thread enters few blocks.
    stream.parallel(blocks * sequences.count, 1, [&](int64_t begin, int64_t end, int worker) {
      Work w(stream, worker, n, width);
      for (int64_t i = begin; i < end; i++) {
        if (i == begin || i % sequences.count == 0) enter_block(scan, i / sequences.count, w);
        scan_sequence<T>(scan, w, i % sequences.count);
      }
    });
  });
}
KERNEL(s4d_scan)

}  // namespace ss::SS_LEVEL
