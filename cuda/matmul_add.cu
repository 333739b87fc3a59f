// sum = residual + x W^T + bias in f32, the end of a layer: where cuBLASLt multiplies it also adds, so
// that the product is neither rounded nor written and read once more.
#include "dispatch.cuh"
#include "matmul_few.cuh"
#include "stream.h"

namespace ss::cuda {

void matmul(Stream& s, In x, In weight, Opt bias, Out y);
void add(Stream& s, In a, In b, Out y);

// [m, k], [n, k], [n]?, [m, n] -> [m, n]
void matmul_add(Stream& s, In x, In weight, Opt bias, In residual, Out sum) {
  Product p{x.view->data, weight.view->data, bias ? bias.data<float>() : nullptr,
            sum.view->data, x.size(0), weight.size(0),
            x.size(1), x.stride(), weight.stride(),
            sum.stride(), x.dtype(), weight.dtype(),
            DType::f32};
  p.addend = residual.data<float>(), p.addend_stride = residual.stride();
  const bool rows = p.k > 0 && p.x_stride >= p.k && p.w_stride >= p.k && p.y_stride >= p.n &&
                    p.addend_stride >= p.n;
  if (p.m > kFew && p.n > 0 && rows && p.x_type == p.w_type && s.blas->multiply(s.handle, p)) return;
  matmul(s, x, weight, bias, sum);
  add(s, In{sum.view}, residual, sum);
}
KERNEL(matmul_add)

}  // namespace ss::cuda
