// y[t, c] = silu?(bias[c] + sum over k of weight[c, k] x[t - w + 1 + k, c]) along each sequence,
// where its past is the last w - 1 inputs in `state`, oldest first, or zeros; they are replaced by
// the last w - 1 inputs of all. Lanes are channels; a thread takes a block of them through a
// sequence. Reads x and writes y once. Taps are added in one order wherever a token lies, so that
// cutting a sequence into calls changes nothing.
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kAhead = 12;  // tokens: 2,048 of 1,536 channels took 4.6 ms without it, 3.6 with

struct Conv {
  In x, weight;
  Opt bias;
  OptInOut state;
  bool silu;
  Out y;
  Sequences sequences;
  int64_t d, w, width;
};

struct Work {
  int64_t first, channels;  // of the block
  float *weight, *bias;     // [w][width], [width]
  void* past;               // T[w - 1][width]
};

void enter_block(const Conv& s, int64_t block, Work& k) {
  const int64_t left = s.d - block * s.width;
  k.first = block * s.width;
  k.channels = left < s.width ? left : s.width;
  for (int64_t c = 0; c < k.channels; c++) {
    const float* weight = s.weight.row<float>(k.first + c);
    for (int64_t i = 0; i < s.w; i++) k.weight[i * s.width + c] = weight[i];
    k.bias[c] = s.bias ? s.bias.data<float>()[k.first + c] : 0;
  }
}

// One token. tap(i) is the row of x, or of the past, that weight i belongs to. W = 0: any w.
template <int W, bool Silu, class T, class Tap>
SS_INLINE void convolve(const Conv& s, const Work& k, Tap tap, T* y) {
  const int64_t w = W ? W : s.w;
  const T* rows[W ? W : 1];
  if constexpr (W > 0)
    for (int i = 0; i < W; i++) rows[i] = tap(i);
  for (int64_t c = 0; c < k.channels; c += kLanes) {
    const int64_t left = k.channels - c;
    Vec sum = load(k.bias + c);
    for (int64_t i = 0; i < w; i++)
      sum += load(k.weight + i * s.width + c) * load_some((W ? rows[W ? i : 0] : tap(i)) + c, left);
    store_some(y + c, Silu ? times_sigmoid(sum) : sum, left);
  }
}

template <class T, int W, bool Silu>
void convolve_sequence(const Conv& s, const Work& k, int64_t sequence) {
  const int64_t begin = s.sequences.begin(sequence), end = s.sequences.end(sequence);
  if (begin == end) return;
  const int64_t history = (W ? W : s.w) - 1, slot = s.sequences.slot(sequence);
  T* past = static_cast<T*>(k.past);
  T* kept = slot < 0 ? nullptr : s.state.row<T>(slot) + k.first * history;  // [channels][history]
  if (kept)
    for (int64_t c = 0; c < k.channels; c++)
      for (int64_t i = 0; i < history; i++) past[i * s.width + c] = kept[c * history + i];
  else
    memset(past, 0, history * s.width * sizeof(T));

  // Row t of the sequence's inputs; negative rows are its past.
  const auto row = [&](int64_t t) -> const T* {
    return t < 0 ? past + (t + history) * s.width : s.x.row<T>(begin + t) + k.first;
  };
  const int64_t length = end - begin;
  for (int64_t t = 0; t < length; t++) {
    if (t + kAhead < length)
      for (int64_t c = 0; c < k.channels; c += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(row(t + kAhead) + c, 0, 2);
        __builtin_prefetch(s.y.row<T>(begin + t + kAhead) + k.first + c, 1, 2);
      }
    convolve<W, Silu>(
        s, k, [&](int64_t i) { return row(t - history + i); }, s.y.row<T>(begin + t) + k.first);
  }
  if (kept)
    for (int64_t i = 0; i < history; i++) {
      const T* from = row(length - history + i);
      for (int64_t c = 0; c < k.channels; c++) kept[c * history + i] = from[c];
    }
}

}  // namespace

void causal_conv1d(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y) {
  const int64_t d = x.size(1), w = weight.size(1);
  const Sequences sequences = ss::sequences(offsets, slots, state);
  if (d == 0 || !sequences.check(stream, x.size(0))) return;
  const int64_t width = block_width(d, sequences.count, stream.threads());
  const int64_t blocks = (d + width - 1) / width;
  const Conv conv{x, weight, bias, state, silu, y, sequences, d, w, width};
  const auto run = [&](auto sequence_fn) {
    stream.parallel(blocks * sequences.count, 1, [&](int64_t begin, int64_t end, int worker) {
      Work k{};
      k.weight = static_cast<float*>(stream.scratch(worker, 2 * (w + 1) * width * sizeof(float)));
      k.bias = k.weight + w * width;
      k.past = k.bias + width;
      for (int64_t i = begin; i < end; i++) {
        if (i == begin || i % sequences.count == 0) enter_block(conv, i / sequences.count, k);
        sequence_fn(conv, k, i % sequences.count);
      }
    });
  };
  with_float(x.dtype(), [&](auto t) {
    using T = decltype(t);
    const auto with_taps = [&]<int W>(Indices<W>) {
      silu ? run(convolve_sequence<T, W, true>) : run(convolve_sequence<T, W, false>);
    };
    if (w == 2)
      with_taps(Indices<2>{});
    else if (w == 3)
      with_taps(Indices<3>{});
    else if (w == 4)
      with_taps(Indices<4>{});
    else
      with_taps(Indices<0>{});
  });
}
KERNEL(causal_conv1d)

}  // namespace ss::SS_LEVEL
