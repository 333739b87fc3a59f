// The gradients of causal_conv1d over sequences that start from zeros. With p the sum that silu was
// applied to, computed again, and dp = dy silu'(p):
//   dx[t] = sum over k of weight[k] dp[t + w - 1 - k],  dweight[k] = sum over t of dp[t] x[t - w + 1 + k]
// A thread takes a block of channels through all sequences, so that sums have one order.
#include "sequences.h"
#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int64_t kWidth = 64;   // channels of a block
constexpr int64_t kFlush = 64;   // tokens whose sums are kept apart, for accuracy

struct Conv {
  In x, weight;
  Opt bias;
  In dy;
  bool silu;
  Out dx;
  int64_t w;
};

struct Work {
  int64_t first, channels;
  float *weight, *bias;           // [w][kWidth], [kWidth]
  float *late;                    // [w][kWidth]: dx of the last w tokens, a ring by token % w
  float *sums, *totals;           // [w + 1][kWidth] of dweight and dbias
};

SS_INLINE Vec silu_slope(Vec x) {
  const Vec s = 1.0f / (1.0f + exp(-x));
  return s * (1.0f + x * (1.0f - s));
}

template <class T>
void walk(const Conv& c, const Work& k, int64_t begin, int64_t end) {
  const int64_t w = c.w;
  memset(k.late, 0, static_cast<size_t>(w * kWidth) * sizeof(float));
  const auto leave = [&](int64_t t) {  // dx[t] is complete
    float* from = k.late + t % w * kWidth;
    for (int64_t i = 0; i < k.channels; i += kLanes)
      store_some(c.dx.row<T>(t) + k.first + i, load(from + i), k.channels - i);
    memset(from, 0, kWidth * sizeof(float));
  };
  for (int64_t t = begin; t < end; t++) {
    for (int64_t i = 0; i < k.channels; i += kLanes) {
      const int64_t left = k.channels - i;
      const auto tap = [&](int64_t j) {  // x that weight j belongs to
        const int64_t at = t - w + 1 + j;
        return at < begin ? Vec{} : load_some(c.x.row<T>(at) + k.first + i, left);
      };
      Vec dp = load_some(c.dy.row<T>(t) + k.first + i, left);
      if (c.silu) {
        Vec p = load(k.bias + i);
        for (int64_t j = 0; j < w; j++) p += load(k.weight + j * kWidth + i) * tap(j);
        dp *= silu_slope(p);
      }
      for (int64_t j = 0; j < w; j++) {
        float* sum = k.sums + j * kWidth + i;
        store(sum, load(sum) + dp * tap(j));
        if (t - w + 1 + j < begin) continue;
        float* to = k.late + (t - w + 1 + j) % w * kWidth + i;
        store(to, load(to) + dp * load(k.weight + j * kWidth + i));
      }
      float* sum = k.sums + w * kWidth + i;
      store(sum, load(sum) + dp);
    }
    if (t - w + 1 >= begin) leave(t - w + 1);
    if ((t - begin) % kFlush == kFlush - 1 || t == end - 1)
      for (int64_t i = 0; i < (w + 1) * kWidth; i += kLanes) {
        store(k.totals + i, load(k.totals + i) + load(k.sums + i));
        store(k.sums + i, Vec{});
      }
  }
  for (int64_t t = end - w + 1 < begin ? begin : end - w + 1; t < end; t++) leave(t);
}

}  // namespace

void causal_conv1d_backward(Stream& stream, In x, In weight, Opt bias, In offsets, In dy, bool silu,
                            Out dx, Out dweight, Out dbias) {
  const int64_t d = x.size(1), w = weight.size(1);
  const Sequences sequences = ss::sequences(offsets, Opt{nullptr}, OptInOut{nullptr});
  if (d == 0 || !sequences.check(stream, x.size(0))) return;
  const Conv c{x, weight, bias, dy, silu, dx, w};
  stream.parallel((d + kWidth - 1) / kWidth, 1, [&](int64_t first, int64_t last, int worker) {
    const int64_t rows = 4 * w + 3;
    Work k{};
    k.weight = static_cast<float*>(
        stream.scratch(worker, static_cast<size_t>(rows * kWidth) * sizeof(float)));
    k.bias = k.weight + w * kWidth, k.late = k.bias + kWidth;
    k.sums = k.late + w * kWidth, k.totals = k.sums + (w + 1) * kWidth;
    for (int64_t block = first; block < last; block++) {
      memset(k.weight, 0, static_cast<size_t>(rows * kWidth) * sizeof(float));
      k.first = block * kWidth;
      k.channels = d - k.first < kWidth ? d - k.first : kWidth;
      for (int64_t i = 0; i < k.channels; i++) {
        for (int64_t j = 0; j < w; j++)
          k.weight[j * kWidth + i] = weight.row<float>(k.first + i)[j];
        k.bias[i] = bias ? bias.data<float>()[k.first + i] : 0;
      }
      with_float(x.dtype(), [&](auto t) {
        for (int64_t i = 0; i < sequences.count; i++)
          walk<decltype(t)>(c, k, sequences.begin(i), sequences.end(i));
      });
      for (int64_t i = 0; i < k.channels; i++) {
        for (int64_t j = 0; j < w; j++)
          dweight.row<float>(k.first + i)[j] = k.totals[j * kWidth + i];
        if (bias) dbias.data<float>()[k.first + i] = k.totals[w * kWidth + i];
      }
    }
  });
}
KERNEL(causal_conv1d_backward)

}  // namespace ss::SS_LEVEL
