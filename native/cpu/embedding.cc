// y = weight[ids]: rows of the table, converted to the type of y.
#include "simd.h"

namespace ss::SS_LEVEL {

void embedding(Stream& s, In ids, In weight, Out y) {  // [t], [v, d] -> [t, d]
  const int64_t tokens = ids.size(0), vocabulary = weight.size(0), d = weight.size(1);
  const int32_t* id = ids.data<int32_t>();
  with_float(weight.dtype(), [&](auto wt) {
    with_float(y.dtype(), [&](auto yt) {
      using W = decltype(wt);
      using Y = decltype(yt);
      s.parallel(tokens, 16, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
          Y* to = y.row<Y>(i);
          if (id[i] < 0 || id[i] >= vocabulary) {
            s.fail("ids[%lld] is %d, expected 0 to %lld", static_cast<long long>(i), id[i],
                   static_cast<long long>(vocabulary - 1));
            memset(to, 0, d * sizeof(Y));
            continue;
          }
          const W* from = weight.row<W>(id[i]);
          int64_t j = 0;
          for (; j + kLanes <= d; j += kLanes) store(to + j, load(from + j));
          if (j < d) store_part(to + j, load_part(from + j, d - j), d - j);
        }
      });
    });
  });
}
KERNEL(embedding)

}  // namespace ss::SS_LEVEL
