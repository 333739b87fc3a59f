// One token into its experts, and out of them: plain products with the chosen ones' matrices, with
// the bits of matmul.
#include "simd.h"
#include "temporary.h"

namespace ss::SS_LEVEL {

void norm_route(Stream& s, Opt x, In residual, In norm_weight, In weight, Opt bias, float eps,
                int64_t k, bool sigmoid, bool normalize, Out sum, Out normed, Out logits,
                Out experts, Out weights);
void matmul(Stream& s, In x, In weight, Opt bias, Out y);
void activate(Stream& s, In x, Opt factor, int64_t kind, Out y);
void expert_combine(Stream& s, In x, In place, In weights, Out y);

namespace {

// Matrix i of a tensor [e, n, d].
View matrix_of(const View& x, int64_t i) {
  return {static_cast<char*>(x.data) + i * x.stride * size_of(x.dtype), {x.shape[1], x.shape[2]},
          x.shape[2], 2, x.dtype};
}
// Row i of a matrix; as a matrix, or a vector.
View row_of(const View& x, int64_t i, int rank = 2) {
  char* data = static_cast<char*>(x.data) + i * x.stride * size_of(x.dtype);
  if (rank == 1) return {data, {x.shape[1]}, 1, 1, x.dtype};
  return {data, {1, x.shape[1]}, x.shape[1], 2, x.dtype};
}

// y = x W^T + bias with the matrices of one expert.
void multiply(Stream& s, const View& x, In weight, Opt bias, int64_t expert, const View& y) {
  const View w = matrix_of(*weight.view, expert);
  const View b = bias ? row_of(*bias.view, expert, 1) : View{};
  matmul(s, In{&x}, In{&w}, bias ? Opt{&b} : Opt{}, Out{&y});
}

}  // namespace

// [1, d]?, [1, d], [d], [e, d], [e]?, [e, n, d], [e, n]?
// -> [1, d], [1, d], [1, e], [1, k], [1, k], [k, h]
void norm_route_up(Stream& s, Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                   Opt up_bias, float eps, int64_t k, bool sigmoid, bool normalize,
                   int64_t kind, int64_t h, Out sum, Out normed, Out logits, Out experts,
                   Out weights, Out hidden) {
  const int64_t n = up.size(1);
  const DType type = hidden.dtype();
  norm_route(s, x, residual, norm_weight, router, router_bias, eps, k, sigmoid, normalize, sum,
             normed, logits, experts, weights);
  const Temporary memory(s, n * size_of(type));
  if (!memory || n == 0) return;
  const View both = memory.matrix(1, n, type);
  const View gate = memory.matrix(1, h, type), factor = memory.matrix(1, h, type, h * size_of(type));
  for (int64_t j = 0; j < k; j++) {
    multiply(s, *normed.view, up, up_bias, experts.data<int32_t>()[j], both);
    const View to = row_of(*hidden.view, j);
    activate(s, In{&gate}, n == 2 * h ? Opt{&factor} : Opt{}, kind, Out{&to});
  }
}
KERNEL(norm_route_up)

// [t k, h], [e, n, h], [e, n]?, [t, k], [t, k] -> [t, n]
void expert_sum(Stream& s, In hidden, In weight, Opt bias, In experts, In weights, Out y) {
  const int64_t t = experts.size(0), k = experts.size(1), n = weight.size(1);
  for (int64_t i = 0; i < t * k; i++) {
    const int32_t at = experts.row<int32_t>(i / k)[i % k];
    if (at >= 0 && at < weight.size(0)) continue;
    return s.fail("experts[%lld] is %d, expected 0 to less than %lld", static_cast<long long>(i), at,
                  static_cast<long long>(weight.size(0)));
  }
  const int64_t size = size_of(hidden.dtype()), rows = t * k * n * size;
  const Temporary memory(s, rows + 64 + t * k * 4);
  if (!memory) return;
  const View products = memory.matrix(t * k, n, hidden.dtype());
  View place = memory.matrix(1, t * k, DType::i32, rows / 64 * 64 + 64);
  place.rank = 1, place.shape[0] = t * k, place.stride = 1;
  for (int64_t i = 0; i < t * k; i++) {
    static_cast<int32_t*>(place.data)[i] = static_cast<int32_t>(i);
    multiply(s, row_of(*hidden.view, i), weight, bias, experts.row<int32_t>(i / k)[i % k],
             row_of(products, i));
  }
  expert_combine(s, In{&products}, In{&place}, weights, y);
}
KERNEL(expert_sum)

}  // namespace ss::SS_LEVEL
