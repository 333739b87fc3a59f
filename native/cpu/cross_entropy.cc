// loss = log of the sum of exp(logits) - logits[label], and its gradient with respect to the logits,
// softmax - (1 at the label), times a factor; both 0 where the label is -100.
#include <math.h>

#include "vmath.h"

namespace ss::SS_LEVEL {
namespace {

constexpr int32_t kIgnored = -100;
constexpr int64_t kPiece = 4096;  // exponentials whose sum is short enough for f32

// False: s has failed.
bool check_labels(Stream& s, In labels, int64_t v) {
  for (int64_t i = 0; i < labels.size(0); i++) {
    const int32_t label = *labels.row<int32_t>(i);
    if (label == kIgnored || (label >= 0 && label < v)) continue;
    s.fail("labels[%lld] is %d, expected -100 or at least 0 and less than %lld",
           static_cast<long long>(i), label, static_cast<long long>(v));
    return false;
  }
  return true;
}

struct Row {
  float largest;
  double total;  // of exp(logit - largest)
};

template <class T>
Row sum_row(const T* row, int64_t v) {
  const int64_t whole = v / kLanes * kLanes;
  float lanes[kLanes], largest = to_float(row[v - 1]);
  Vec most = splat(largest);
  for (int64_t j = 0; j < whole; j += kLanes) most = max(load(row + j), most);
  store(lanes, most);
  for (int j = 0; j < kLanes; j++) largest = lanes[j] > largest ? lanes[j] : largest;
  for (int64_t j = whole; j < v; j++)
    largest = to_float(row[j]) > largest ? to_float(row[j]) : largest;
  double total = 0;
  for (int64_t j = 0; j < whole; j += kPiece) {
    Vec part{};
    for (int64_t k = j; k < whole && k < j + kPiece; k += kLanes)
      part += exp(load(row + k) - largest);
    total += sum(part);
  }
  for (int64_t j = whole; j < v; j++)
    total += ::exp(static_cast<double>(to_float(row[j])) - largest);
  return {largest, total};
}

template <class T>
float loss_of(const Row& sums, const T* row, int32_t label) {
  return static_cast<float>(::log(sums.total) + sums.largest - to_float(row[label]));
}

// to = factor * (softmax(row) - 1 at the label); to may be row.
template <class T, class Y>
void write_gradient(const Row& sums, const T* row, int64_t v, int32_t label, float factor, Y* to) {
  const float scale = static_cast<float>(factor / sums.total);
  const float at_label = to_float(row[label]);
  for (int64_t j = 0; j < v; j += kLanes)
    store_some(to + j, exp(load_some(row + j, v - j) - sums.largest) * scale, v - j);
  const double p = ::exp(static_cast<double>(at_label) - sums.largest) / sums.total;
  from_float(to[label], static_cast<float>(factor * (p - 1)));
}

}  // namespace

void cross_entropy(Stream& s, In logits, In labels, Out loss) {  // f32[t, v], i32[t] -> f32[t]
  const int64_t v = logits.size(1);
  if (!check_labels(s, labels, v)) return;
  s.parallel(logits.size(0), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t label = *labels.row<int32_t>(i);
      const float* row = logits.row<float>(i);
      *loss.row<float>(i) = label == kIgnored ? 0 : loss_of(sum_row(row, v), row, label);
    }
  });
}
KERNEL(cross_entropy)

void cross_entropy_backward(Stream& s, In logits, In labels, In dloss, Out dlogits) {
  const int64_t v = logits.size(1);
  if (!check_labels(s, labels, v)) return;
  s.parallel(logits.size(0), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t label = *labels.row<int32_t>(i);
      const float* row = logits.row<float>(i);
      float* to = dlogits.row<float>(i);
      if (label == kIgnored)
        memset(to, 0, static_cast<size_t>(v) * sizeof(float));
      else
        write_gradient(sum_row(row, v), row, v, label, *dloss.row<float>(i), to);
    }
  });
}
KERNEL(cross_entropy_backward)

// The loss, and the gradient in place of the logits. // T[t, v], i32[t], f32[1] -> f32[t]
void cross_entropy_gradient(Stream& s, InOut logits, In labels, In scale, Out loss) {
  const int64_t v = logits.size(1);
  if (!check_labels(s, labels, v)) return;
  with_float(logits.dtype(), [&](auto type) {
    using T = decltype(type);
    s.parallel(logits.size(0), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const int32_t label = *labels.row<int32_t>(i);
        T* row = logits.row<T>(i);
        *loss.row<float>(i) = 0;
        if (label == kIgnored) {
          memset(row, 0, static_cast<size_t>(v) * sizeof(T));
          continue;
        }
        const Row sums = sum_row(row, v);
        *loss.row<float>(i) = loss_of(sums, row, label);
        write_gradient(sums, row, v, label, *scale.data<float>(), row);
      }
    });
  });
}
KERNEL(cross_entropy_gradient)

}  // namespace ss::SS_LEVEL
