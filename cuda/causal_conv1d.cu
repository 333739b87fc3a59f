// y[t, c] = silu?(bias[c] + sum over k of weight[c, k] x[t - w + 1 + k, c]) along each sequence,
// where its past is the last w - 1 inputs in `state`, oldest first, or zeros; they are replaced by
// the last w - 1 inputs of all. A thread takes four neighbouring channels through a run of tokens
// with the window in registers, so that x is read and y written once: 2 t d items move; the w - 1
// tokens before a run come from the L2. Only the thread with a sequence's first run knows its state: it reads and replaces it.
#include <string.h>

#include "device/activation.cuh"
#include "device/pack.cuh"
#include "device/words.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kChannels = 4;  // of a thread, where all is aligned
constexpr int kAhead = 64;    // bytes of x that a thread asks for at once, of
constexpr int kBatch = 8;     // tokens at most
// A run, as a shift. Longer ones read fewer of the w - 1 tokens before them twice, but those come
// from the L2, and shorter ones leave less undone at the end: of 8, 16, 32 and 64 tokens the first
// are the fastest, by 1, 8 and 10 %.
constexpr int kRun = 3;

template <class T>
struct Conv {
  const T* x;  // [t, d]
  T* y;        // [t, d]
  int64_t x_stride, y_stride;
  const float *weight, *bias;  // [d, w], [d] or null
  int64_t weight_stride;
  T* state;  // [p, d, w - 1]
  int64_t state_stride;
  Sequences sequences;
  int64_t d, w;
  unsigned column_blocks;  // blocks of a run
  int run;                 // tokens, as a shift; at least w - 1 of them
  int64_t most;            // tokens of a run that are convolved
  bool silu, wide_weight;
};

// The state of V channels, which is dense: as the 16-byte accesses of V channels' worth each.
template <class T, int V, int W>
struct Past {
  Raw<T, V> part[W - 1];
  __device__ const T& at(int channel, int i) const {
    const int item = channel * (W - 1) + i;
    return part[item / V].item[item % V];
  }
  __device__ T& at(int channel, int i) {
    const int item = channel * (W - 1) + i;
    return part[item / V].item[item % V];
  }
  __device__ static Past load(const T* state) {
    Past past;
#pragma unroll
    for (int i = 0; i < W - 1; i++) past.part[i] = reinterpret_cast<const Raw<T, V>*>(state)[i];
    return past;
  }
  __device__ Words<T, V> token(int i) const {
    Raw<T, V> row;
#pragma unroll
    for (int k = 0; k < V; k++) row.item[k] = at(k, i);
    Words<T, V> out{};
    memcpy(&out, &row, sizeof(row));
    return out;
  }
};

// The state after the piece's whole sequence.
template <int V, int W, class T>
__device__ void keep_last(const Conv<T>& s, const Sequences::Piece& piece, int64_t c, T* state) {
  const int64_t length = piece.stop - piece.start;
  const auto past = Past<T, V, W>::load(state);
  Past<T, V, W> last{};
#pragma unroll
  for (int i = 0; i < W - 1; i++) {
    const int64_t t = length - (W - 1) + i;  // negative: still the old state's
    Raw<T, V> row{};
    if (t >= 0) row = *reinterpret_cast<const Raw<T, V>*>(s.x + (piece.start + t) * s.x_stride + c);
#pragma unroll
    for (int k = 0; k < V; k++) {
      T item = row.item[k];
#pragma unroll
      for (int old = 0; old < W - 1; old++)
        if (t < 0 && old == t + W - 1) item = past.at(k, old);
      last.at(k, i) = item;
    }
  }
#pragma unroll
  for (int i = 0; i < W - 1; i++) reinterpret_cast<Raw<T, V>*>(state)[i] = last.part[i];
}

template <class T, int V>
constexpr int batch_of = kAhead / (V * static_cast<int>(sizeof(T))) < kBatch
                             ? kAhead / (V * static_cast<int>(sizeof(T)))
                             : kBatch;

template <class T, int V, int W>
__global__ void __launch_bounds__(kThreads, 12) convolve(const __grid_constant__ Conv<T> s) {
  using Items = Words<T, V>;
  constexpr int batch = batch_of<T, V>;
  let_next_start();
  wait_for_previous();
  s.sequences.check();
  const auto piece = s.sequences.piece_by_warp(blockIdx.x / s.column_blocks, s.run);
  const int64_t c = (blockIdx.x % s.column_blocks * int64_t{kThreads} + threadIdx.x) * V;
  if (c >= s.d) return;
  float weight[V][W], bias[V];
#pragma unroll
  for (int k = 0; k < V; k++) {
    const float* from = s.weight + (c + k) * s.weight_stride;
    bias[k] = s.bias ? s.bias[c + k] : 0.0f;
    if (W == 4 && s.wide_weight) {
      const Pack<4> some = Pack<4>::load(from);
#pragma unroll
      for (int i = 0; i < W; i++) weight[k][i] = some.item[i];
    } else {
#pragma unroll
      for (int i = 0; i < W; i++) weight[k][i] = from[i];
    }
  }
  if (piece.begin >= piece.end) return;

  const T* x_at = s.x + piece.begin * s.x_stride + c;
  T* y_at = s.y + piece.begin * s.y_stride + c;
  const int64_t tokens = piece.end - piece.begin;
  int left = static_cast<int>(tokens < s.most ? tokens : s.most);
  Items window[W - 1 + batch];
  const auto load = [&] {
#pragma unroll
    for (int j = 0; j < batch; j++)
      if (j < left) window[W - 1 + j] = Items::load(x_at + j * s.x_stride);
  };
  load();  // before the past, which the state may stand for: that waits
  const bool owner = piece.begin == piece.start;
  const int64_t slot = owner ? s.sequences.slot(piece.sequence) : -1;
  T* state = slot < 0 ? nullptr : s.state + slot * s.state_stride + c * (W - 1);
#pragma unroll
  for (int i = 0; i < W - 1; i++)
    window[i] = owner ? Items{} : Items::load(x_at - (W - 1 - i) * s.x_stride);
  if (state) {
    const auto past = Past<T, V, W>::load(state);
#pragma unroll
    for (int i = 0; i < W - 1; i++) window[i] = past.token(i);
  }

  for (;;) {
#pragma unroll
    for (int j = 0; j < batch; j++) {
      if (j >= left) break;
      Pack<V> out;
#pragma unroll
      for (int k = 0; k < V; k++) {
        float sum = bias[k];
#pragma unroll
        for (int i = 0; i < W; i++) sum = fmaf(weight[k][i], window[i + j][k], sum);
        out.item[k] = s.silu ? silu(sum) : sum;
      }
      out.store(y_at + j * s.y_stride);
    }
    left -= batch;
    if (left <= 0) break;
    x_at += batch * s.x_stride, y_at += batch * s.y_stride;
#pragma unroll
    for (int i = 0; i < W - 1; i++) window[i] = window[i + batch];
    load();
  }
  if (state) keep_last<V, W>(s, piece, c, state);
}

// Any w, one channel a thread, taps from the cache.
template <class T>
__global__ void __launch_bounds__(kThreads) convolve_any(const __grid_constant__ Conv<T> s) {
  let_next_start();
  wait_for_previous();
  s.sequences.check();
  const int64_t c = blockIdx.x % s.column_blocks * int64_t{kThreads} + threadIdx.x, past = s.w - 1;
  const auto piece = s.sequences.piece(blockIdx.x / s.column_blocks, s.run);
  if (c >= s.d || piece.begin >= piece.end) return;
  const int64_t slot = piece.begin == piece.start ? s.sequences.slot(piece.sequence) : -1;
  T* state = slot < 0 ? nullptr : s.state + slot * s.state_stride + c * past;
  const float* weight = s.weight + c * s.weight_stride;
  const float bias = s.bias ? s.bias[c] : 0.0f;
  const auto input = [&](int64_t t) {  // negative: before the sequence
    if (t >= 0) return s.x[(piece.start + t) * s.x_stride + c];
    return state ? state[past + t] : T{};
  };
  for (int64_t t = piece.begin - piece.start; t < piece.end - piece.start; t++) {
    float sum = bias;
    for (int64_t i = 0; i < s.w; i++) sum = fmaf(weight[i], to_float(input(t - past + i)), sum);
    from_float(s.y[(piece.start + t) * s.y_stride + c], s.silu ? silu(sum) : sum);
  }
  if (!state) return;
  // In this order none is overwritten that is still to be read.
  for (int64_t i = 0; i < past; i++) state[i] = input(piece.stop - piece.start - past + i);
}

template <class T>
void launch_blocks(Stream& stream, Conv<T> s, void (*kernel)(Conv<T>), int items) {
  const int64_t columns = (s.d + items - 1) / items;
  s.column_blocks = static_cast<unsigned>((columns + kThreads - 1) / kThreads);
  const int64_t blocks = s.column_blocks * s.sequences.pieces(s.run);
  launch(stream.handle, kernel, {static_cast<unsigned>(blocks), kThreads}, s);
}

template <int V, class T>
void launch_width(Stream& stream, const Conv<T>& s) {
  if (s.w == 2)
    launch_blocks(stream, s, convolve<T, V, 2>, V);
  else if (s.w == 3)
    launch_blocks(stream, s, convolve<T, V, 3>, V);
  else
    launch_blocks(stream, s, convolve<T, V, 4>, V);
}

// Where only_first is set, the first w - 1 tokens of each sequence and the states after it; w is 2 to 4.
void convolve_sequences(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                        bool silu, bool only_first, Out y) {
  const int64_t t = x.size(0), d = x.size(1), count = offsets.size(0) - 1;
  if (t == 0 || d == 0 || count == 0) return;
  with_float(x.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int V = kChannels;
    Conv<T> s{};
    s.x = x.data<T>(), s.x_stride = x.stride();
    s.y = y.data<T>(), s.y_stride = y.stride();
    s.weight = weight.data<float>(), s.weight_stride = weight.stride();
    if (bias) s.bias = bias.data<float>();
    if (state) s.state = state.data<T>(), s.state_stride = state.stride();
    s.sequences = sequences(stream, offsets, slots, state, t);
    s.d = d, s.w = weight.size(1), s.silu = silu;

    s.wide_weight = packs<float>(weight, 4);

    s.run = kRun;
    while ((1 << s.run) < s.w - 1) s.run++;
    if (count == t || only_first) s.run = kWhole;  // as many as tokens: one each, most likely
    s.most = only_first ? s.w - 1 : t;

    const bool wide = d % V == 0 && packs<T>(x, V) && packs<T>(y, V) &&
                      (!state || packs<T>(state, V));
    if (s.w < 2 || s.w > 4)
      launch_blocks(stream, s, convolve_any<T>, 1);
    else if (wide)
      launch_width<V>(stream, s);
    else
      launch_width<1>(stream, s);
  });
}

}  // namespace

void causal_conv1d(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y) {
  convolve_sequences(stream, x, weight, bias, offsets, slots, state, silu, false, y);
}
KERNEL(causal_conv1d)

// Of conv_matmul: what needs more than the tokens before.
void convolve_starts(Stream& stream, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                     Out u) {
  convolve_sequences(stream, x, weight, bias, offsets, slots, state, true, true, u);
}

}  // namespace ss::cuda
