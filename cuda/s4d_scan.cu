// Per sequence and channel c:
//   h = h + E h + u                              // complex [n]
//   y = 2 Re(sum over n of W h) + D u
// Long sequences: a block takes some channels through all of a sequence's tokens, in tiles through
// shared memory; states stay in registers (device/s4d_lane.cuh). Five multiplications for each token
// and state are what it costs. Where sequences and channels are too few to fill the card, pieces of
// them go side by side: once to see what each adds to the state, once with the state that it starts
// from, which (1 + E)^(tokens of a piece) tells of. Sequences of one token: a group of lanes reads and
// writes each channel's state, 24 s d n bytes with E and W.
#include "card.h"
#include "device/complex.cuh"
#include "device/dependent.cuh"
#include "device/pack.cuh"
#include "device/s4d_lane.cuh"
#include "device/sequences.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "scratch.h"
#include "sequences.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 128, kSteps = 32, kPad = 8;

template <class T>
struct Scan {
  const T* u;
  T* y;
  const float* D;
  float* state;
  int64_t u_stride, y_stride, state_stride;
  S4dSystem system;
  Sequences sequences;
  int shift;         // pieces are 1 << shift tokens
  unsigned blocks;   // that the channels of a sequence take
  float* carry;      // [pieces][d][n][2]: what each piece adds to the state, then what it starts from

  __device__ float* pool_row(int64_t sequence) const {
    const int64_t slot = sequences.slot(sequence);
    return slot < 0 ? nullptr : state + slot * state_stride;
  }
};

// A block's tokens by channels, a tile ahead in registers.
template <class T, int Width>
struct Input {
  static constexpr int kItems = kSteps * Width / kThreads;
  const T* u;
  int64_t stride;
  float item[kItems];

  __device__ Input(const Scan<T>& s, int64_t begin, int64_t first)
      : u(s.u + begin * s.u_stride + first), stride(s.u_stride) {}
  // Of `steps` tokens from t on, and `channels`.
  __device__ void load(int64_t t, int64_t steps, int64_t channels) {
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      const int at = threadIdx.x + i * kThreads, step = at / Width, c = at % Width;
      item[i] = step < steps && c < channels ? to_float(u[(t + step) * stride + c]) : 0.0f;
    }
  }
  __device__ void put(float* tile) const {
#pragma unroll
    for (int i = 0; i < kItems; i++) tile[threadIdx.x + i * kThreads] = item[i];
  }
};

// One block for each piece of a sequence and its channels. Adding: a piece starts from zero, and only
// what it adds to the state counts; a sequence's last piece adds to none.
template <class T, int Lanes, int States, bool Adding>
__global__ void __launch_bounds__(kThreads) scan_pieces(const __grid_constant__ Scan<T> s) {
  constexpr int width = kThreads / Lanes, row = width + kPad;
  __shared__ float in[2][kSteps * width], out[kSteps * row];
  if (!Adding) s.sequences.check();
  const S4dSystem& system = s.system;
  const int64_t number = blockIdx.x / s.blocks, first = blockIdx.x % s.blocks * int64_t{width};
  const auto piece = s.sequences.piece(number, s.shift);
  if (piece.begin >= piece.end || (Adding && piece.end == piece.stop)) return;
  const int64_t tokens = piece.end - piece.begin;
  const int64_t channels = system.d - first < width ? system.d - first : width;
  const int channel = threadIdx.x / Lanes, lane_of = threadIdx.x % Lanes;
  const float skip = s.D && channel < channels ? s.D[first + channel] : 0.0f;
  float* own = s.carry ? s.carry + number * system.d * system.n * 2 : s.pool_row(piece.sequence);
  S4dLane<Lanes, States> lane(system, first + channel, Adding ? nullptr : own, skip);
  Input<T, width> input(s, piece.begin, first);

  input.load(0, tokens, channels);
  for (int64_t t = 0; t < tokens; t += kSteps) {
    float* tile = in[t / kSteps % 2];
    input.put(tile);
    __syncthreads();
    if (t + kSteps < tokens) input.load(t + kSteps, tokens - t - kSteps, channels);
    const int steps = tokens - t < kSteps ? static_cast<int>(tokens - t) : kSteps;
    int i = 0;
    for (; i + kFour <= steps; i += kFour) {
      float u[kFour];
#pragma unroll
      for (int k = 0; k < kFour; k++) u[k] = tile[(i + k) * width + channel];
      if constexpr (!Adding) {
        const float y = lane.outputs(u);
        if (lane_of < kFour) out[(i + lane_of) * row + channel] = y;
      }
      lane.advance(u);
    }
    for (; i < steps; i++) {
      const float y = lane.advance_one(tile[i * width + channel], skip);
      if (!Adding && lane_of == 0) out[i * row + channel] = y;
    }
    if constexpr (Adding) continue;
    __syncthreads();
    for (int at = threadIdx.x; at < steps * width; at += kThreads) {
      const int step = at / width, c = at % width;
      if (c < channels)
        from_float(s.y[(piece.begin + t + step) * s.y_stride + first + c], out[step * row + c]);
    }
  }
  float* kept = Adding ? own : piece.end == piece.stop ? s.pool_row(piece.sequence) : nullptr;
  if (kept) lane.store(kept);
}

// From what each piece adds to the state to what it starts from. A thread takes one state.
template <class T>
__global__ void join_pieces(const __grid_constant__ Scan<T> s) {
  const S4dSystem& system = s.system;
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, row = system.d * system.n;
  if (i >= row) return;
  const float* e = system.E + i / system.n * system.E_stride + i % system.n * 2;
  const float2 decay = rounded(power({1 + static_cast<double>(e[0]), e[1]}, int64_t{1} << s.shift));
  const auto whole = s.sequences.whole(blockIdx.y);
  const float* pool = s.pool_row(blockIdx.y);
  float2 h = pool ? float2{pool[2 * i], pool[2 * i + 1]} : float2{};
  float2* carry = reinterpret_cast<float2*>(s.carry) + s.sequences.first_piece(blockIdx.y, s.shift) * row + i;
  // Some are asked for before they are needed: one after the other took five times as long.
  constexpr int kAhead = 8;
  const int64_t pieces = (whole.end - whole.begin + (int64_t{1} << s.shift) - 1) >> s.shift;
  for (int64_t p = 0; p < pieces; p += kAhead) {
    float2 added[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; k++)  // the last piece has added nothing
      added[k] = p + k + 1 < pieces ? carry[(p + k) * row] : float2{};
#pragma unroll
    for (int k = 0; k < kAhead; k++) {
      if (p + k >= pieces) break;
      carry[(p + k) * row] = h;
      h = {fmaf(decay.x, h.x, fmaf(-decay.y, h.y, added[k].x)),
           fmaf(decay.x, h.y, fmaf(decay.y, h.x, added[k].y))};
    }
  }
}

// Where there are as many tokens as sequences: one of each, most likely. States lanes apart, so that
// neighbours read neighbours. Wide: every row of E, W and the pool is aligned to pairs.
template <bool Wide>
__device__ float2 pair(const float* p) {
  return Wide ? *reinterpret_cast<const float2*>(p) : float2{p[0], p[1]};
}
template <class T, int Lanes, int States, bool Wide>
__global__ void __launch_bounds__(kThreads) scan_tokens(const __grid_constant__ Scan<T> s) {
  let_next_start();
  wait_for_previous();
  s.sequences.check();
  const S4dSystem& system = s.system;
  const int64_t sequence = blockIdx.x / s.blocks;
  const int64_t c = blockIdx.x % s.blocks * int64_t{kThreads / Lanes} + threadIdx.x / Lanes;
  const auto piece = s.sequences.whole(sequence);
  if (piece.begin >= piece.end) return;
  const int64_t left = c < system.d ? system.n - threadIdx.x % Lanes : 0;  // states from this lane's on
  float* state = left > 0 ? s.pool_row(sequence) : nullptr;
  const float *E = system.E + c * system.E_stride, *W = system.W + c * system.W_stride;
  const auto at = [&](int i) { return 2 * (threadIdx.x % Lanes + i * Lanes); };
  if (state) state += c * system.n * 2;
  float2 h[States];
#pragma unroll
  for (int i = 0; i < States; i++)
    h[i] = state && i * Lanes < left ? pair<Wide>(state + at(i)) : float2{};
  for (int64_t t = piece.begin; t < piece.end; t++) {
    const float u = c < system.d ? to_float(s.u[t * s.u_stride + c]) : 0.0f;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < States; i++) {
      if (i * Lanes >= left) continue;
      const float2 e = pair<Wide>(E + at(i)), w = pair<Wide>(W + at(i));
      const float change = fmaf(-e.y, h[i].y, fmaf(e.x, h[i].x, u));
      h[i].y += fmaf(e.x, h[i].y, e.y * h[i].x);
      h[i].x += change;
      sum = fmaf(-2 * w.y, h[i].y, fmaf(2 * w.x, h[i].x, sum));
    }
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (c < system.d && threadIdx.x % Lanes == 0)
      from_float(s.y[t * s.y_stride + c], s.D ? fmaf(s.D[c], u, sum) : sum);
  }
#pragma unroll
  for (int i = 0; i < States; i++) {
    if (!state || i * Lanes >= left) continue;
    if (Wide)
      *reinterpret_cast<float2*>(state + at(i)) = h[i];
    else
      state[at(i)] = h[i].x, state[at(i) + 1] = h[i].y;
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
unsigned grid(int64_t blocks) { return static_cast<unsigned>(blocks); }

template <class T, int Lanes, int States>
void step(Stream& stream, Scan<T> s) {
  s.blocks = grid(ceil_div(s.system.d, kThreads / Lanes));
  const auto pairs = [](const float* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(float2) == 0 && stride % 2 == 0;
  };
  const S4dSystem& a = s.system;
  const bool wide = pairs(a.E, a.E_stride) && pairs(a.W, a.W_stride) && pairs(s.state, s.state_stride);
  launch(stream.handle,
         wide ? scan_tokens<T, Lanes, States, true> : scan_tokens<T, Lanes, States, false>,
         {grid(s.blocks * s.sequences.count), kThreads}, s);
}

// Tokens of the pieces as a shift, or kWhole. In pieces there is 12/20 of the work once more, but they fill the
// card better. Times are in those of a tile where a multiprocessor is full (1.1 to 1.9 us on an H100): what they
// choose took 1.02 times as long as the best of all on average, at most 1.13, over 153 shapes of 128 to 2,048
// channels, N from 16 to 512 and 256 to 16,384 tokens (docs/kernels/s4d.md).
int piece_shift(const Sequences& sequences, int64_t blocks, int states) {
  const double units = multiprocessors(), count = static_cast<double>(sequences.count);
  const double tokens = static_cast<double>(sequences.tokens) / count, row = blocks * count / units;
  double least = tokens / kSteps * fmax(1.7, ceil(row));
  int shift = kWhole;
  for (int s = 6; s <= 11 && (2 << s) <= tokens; s++) {
    const double tiles = (1 << s) / kSteps, pieces = ceil(tokens / (1 << s));
    const double time = 4 + 0.8 * tiles + pieces * row * (1.1 * tiles + 0.3 * states);
    if (time < least) least = time, shift = s;
  }
  return shift;
}

template <class T, int Lanes, int States>
void scan(Stream& stream, Scan<T> s) {
  const int64_t count = s.sequences.count;
  s.blocks = grid(ceil_div(s.system.d, kThreads / Lanes));
  s.shift = piece_shift(s.sequences, s.blocks, States);
  if (s.shift == kWhole) {
    scan_pieces<T, Lanes, States, false><<<grid(s.blocks * count), kThreads, 0, stream.handle>>>(s);
    return;
  }
  const int64_t most = s.sequences.pieces(s.shift), row = s.system.d * s.system.n;
  const Scratch scratch(stream, most * row * static_cast<int64_t>(sizeof(float2)));
  if (!scratch.floats()) return;  // the queue reports it
  s.carry = scratch.floats();
  scan_pieces<T, Lanes, States, true><<<grid(s.blocks * most), kThreads, 0, stream.handle>>>(s);
  join_pieces<T><<<dim3(grid(ceil_div(row, 128)), grid(count)), 128, 0, stream.handle>>>(s);
  scan_pieces<T, Lanes, States, false><<<grid(s.blocks * most), kThreads, 0, stream.handle>>>(s);
}

template <class T>
void scan_any(Stream& stream, const Scan<T>& s) {
  const int64_t n = s.system.n;
  if (n <= 8) return scan<T, 4, 2>(stream, s);
  if (n <= 16) return scan<T, 4, 4>(stream, s);
  if (n <= 32) return scan<T, 8, 4>(stream, s);
  if (n <= 64) return scan<T, 16, 4>(stream, s);
  if (n <= 128) return scan<T, 32, 4>(stream, s);
  scan<T, 32, 8>(stream, s);
}

template <class T>
void step_any(Stream& stream, const Scan<T>& s) {
  const int64_t n = s.system.n;
  if (n <= 16) return step<T, 16, 1>(stream, s);
  if (n <= 32) return step<T, 32, 1>(stream, s);
  if (n <= 64) return step<T, 32, 2>(stream, s);
  step<T, 32, 8>(stream, s);
}

}  // namespace

void s4d_scan(Stream& stream, In u, In E, In W, Opt D, In offsets, Opt slots, OptInOut state, Out y) {
  const int64_t t = u.size(0), count = offsets.size(0) - 1;
  if (t == 0 || u.size(1) == 0 || count == 0) return;
  with_float(u.dtype(), [&](auto type) {
    using T = decltype(type);
    Scan<T> s{};
    s.u = u.data<T>(), s.u_stride = u.stride();
    s.y = y.data<T>(), s.y_stride = y.stride();
    if (D) s.D = D.data<float>();
    if (state) s.state = state.data<float>(), s.state_stride = state.stride();
    s.system = {E.data<float>(), W.data<float>(), E.stride(), W.stride(), u.size(1), E.size(1)};
    s.sequences = sequences(stream, offsets, slots, state, t);
    count == t ? step_any(stream, s) : scan_any(stream, s);
  });
}
KERNEL(s4d_scan)

}  // namespace ss::cuda
