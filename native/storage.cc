#include "storage.h"

namespace ss {

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(n, size, &n)) return -1;
  return n > (int64_t{1} << 48) ? -1 : n;
}

const char* make_view(const Storage& storage, DType dtype, const std::vector<int64_t>& shape,
                      int64_t offset, int64_t stride, View& out) {
  if (shape.empty() || shape.size() > kMaxRank) return "a tensor has 1 to 4 dimensions";
  const int64_t total = elements(shape);
  if (total < 0) return "the shape has a negative size, or more elements than fit";
  const int64_t rows = shape[0], row = rows ? total / rows : 0;
  const int64_t room = static_cast<int64_t>(storage.bytes) / size_of(dtype);
  int64_t end = 0;
  if (offset < 0 || stride < 0) return "offset and stride cannot be negative";
  if (rows > 1 && row > 0 && stride < row) return "rows of a view cannot overlap";
  if (rows > 1 && shape.size() == 1 && stride != 1) return "a tensor of one dimension is dense";
  if (total > 0 && (__builtin_mul_overflow(rows - 1, stride, &end) ||
                    __builtin_add_overflow(end, offset, &end) || end > room - row))
    return "the view reaches beyond its tensor";
  out = {static_cast<char*>(storage.data) + (total > 0 ? offset * size_of(dtype) : 0), {}, stride,
         static_cast<int32_t>(shape.size()), dtype};
  for (size_t i = 0; i < shape.size(); i++) out.shape[i] = shape[i];
  return nullptr;
}

}  // namespace ss
