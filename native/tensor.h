// Tensors as kernels see them: a View and the five parameter types that say how a kernel uses one.
#pragma once
#include <stdint.h>

// Code that is compiled once per instruction level must not leave shared inline symbols behind
// (the linker would keep one of them for every level), so everything small is always inlined.
#define SS_INLINE inline __attribute__((always_inline))

namespace ss {

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, i32 = 3 };

SS_INLINE int64_t size_of(DType t) { return t == DType::f32 || t == DType::i32 ? 4 : 2; }

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr int kMaxRank = 4;

// Row-major. Only dimension 0 may be strided: row i starts at data + i * stride elements, and what
// lies inside a row is dense. So halves of a projection are read in place. One dimension: always dense.
struct View {
  void* data;
  int64_t shape[kMaxRank];
  int64_t stride;
  int32_t rank;
  DType dtype;
};

// Code is the letter by which a parameter stands in a kernel's signature.
template <char Code>
struct Param {
  static constexpr bool kConst = Code == 'i' || Code == 'q';
  const View* view;

  SS_INLINE explicit operator bool() const { return view != nullptr; }
  SS_INLINE int64_t size(int dim) const { return view->shape[dim]; }
  SS_INLINE int rank() const { return view->rank; }
  SS_INLINE int64_t stride() const { return view->stride; }
  SS_INLINE DType dtype() const { return view->dtype; }
  // Row i as T: const for inputs. T must be the element type of dtype().
  template <class T>
  SS_INLINE auto row(int64_t i) const {
    if constexpr (kConst)
      return static_cast<const T*>(view->data) + i * view->stride;
    else
      return static_cast<T*>(view->data) + i * view->stride;
  }
  template <class T>
  SS_INLINE auto data() const {
    return row<T>(0);
  }
};

using In = Param<'i'>;     // read
using Opt = Param<'q'>;    // read, may be absent
using InOut = Param<'u'>;  // updated in place
using OptInOut = Param<'v'>;
using Out = Param<'o'>;  // written whole

}  // namespace ss
