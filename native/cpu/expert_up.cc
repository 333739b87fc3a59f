// Into the experts and out of them: the ops that these stand for, in turn, with the same bits.
#include "simd.h"
#include "temporary.h"

namespace ss::SS_LEVEL {

void expert_matmul(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, Out y);
void expert_combine(Stream& s, In x, In place, In weights, Out y);
void activate(Stream& s, In x, Opt factor, int64_t kind, Out y);

namespace {

// Columns [begin, end) of a matrix.
View columns(const View& x, int64_t begin, int64_t end) {
  View part = x;
  part.data = static_cast<char*>(x.data) + begin * size_of(x.dtype);
  part.shape[1] = end - begin;
  return part;
}

}  // namespace

// [t, d], [e, n, d], [e, n]?, [a], [e + 1] -> [a, h]
void expert_up(Stream& s, In x, In weight, Opt bias, In order, In offsets, int64_t k, int64_t kind,
               int64_t h, Out y) {
  const int64_t places = order.size(0), n = weight.size(1);
  const Temporary memory(s, places * n * size_of(x.dtype()));
  if (!memory) return;
  const View both = memory.matrix(places, n, x.dtype());
  expert_matmul(s, x, weight, bias, order, offsets, k, Out{&both});
  const View gate = columns(both, 0, h), up = columns(both, h, 2 * h);
  activate(s, In{&gate}, n == 2 * h ? Opt{&up} : Opt{}, kind, y);
}
KERNEL(expert_up)

// [a, d], [e, n, d], [e, n]?, [a], [a], [e + 1], [t, k] -> [t, n]
void expert_down(Stream& s, In x, In weight, Opt bias, In order, In place, In offsets, In weights,
                 Out y) {
  const int64_t places = order.size(0), n = weight.size(1);
  const Temporary memory(s, places * n * size_of(x.dtype()));
  if (!memory) return;
  const View rows = memory.matrix(places, n, x.dtype());
  expert_matmul(s, x, weight, bias, order, offsets, 0, Out{&rows});
  expert_combine(s, In{&rows}, place, weights, y);
}
KERNEL(expert_down)

}  // namespace ss::SS_LEVEL
