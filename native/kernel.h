// Binds a plain function to an op name and spells its signature, so that
//   void rms_norm(Stream&, In x, In weight, float eps, Out y);   KERNEL(rms_norm);
// is all that a kernel file has to say. Signature here: "iifo".
#pragma once
#include "tensor.h"

namespace ss {

struct Stream;  // each device defines its own

struct Arg {
  View view;
  double number;
  bool present;
};

constexpr int kMaxArgs = 32;

struct Kernel {
  const char* name;
  const char* signature;
  void (*call)(Stream&, const Arg*);
  const Kernel* next;
};

// How a C++ parameter type is spelled, and read from an Arg.
template <class T>
struct Slot;
template <char Code>
struct Slot<Param<Code>> {
  static constexpr char code = Code;
  static SS_INLINE Param<Code> get(const Arg& a) { return {a.present ? &a.view : nullptr}; }
};
template <>
struct Slot<float> {
  static constexpr char code = 'f';
  static SS_INLINE float get(const Arg& a) { return static_cast<float>(a.number); }
};
template <>
struct Slot<int64_t> {
  static constexpr char code = 'n';
  static SS_INLINE int64_t get(const Arg& a) { return static_cast<int64_t>(a.number); }
};
template <>
struct Slot<bool> {
  static constexpr char code = 'b';
  static SS_INLINE bool get(const Arg& a) { return a.number != 0; }
};

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <auto Fn>
struct Binding;
template <class... P, void (*Fn)(Stream&, P...)>
struct Binding<Fn> {
  static_assert(sizeof...(P) <= kMaxArgs);
  static constexpr char signature[] = {Slot<P>::code..., '\0'};
  template <int... I>
  static SS_INLINE void spread(Stream& s, const Arg* a, Indices<I...>) {
    Fn(s, Slot<P>::get(a[I])...);
  }
  static void call(Stream& s, const Arg* a) {
    spread(s, a, typename MakeIndices<sizeof...(P)>::type{});
  }
};

}  // namespace ss

// Stands after the kernel, in the namespace that holds the device's (or level's) `kernels` list:
//   constinit const ss::Kernel* kernels = nullptr;
#define KERNEL(fn)                                                                           \
  namespace {                                                                                \
  const ss::Kernel fn##_entry{#fn, ss::Binding<&fn>::signature, ss::Binding<&fn>::call,      \
                              kernels};                                                      \
  [[maybe_unused]] const bool fn##_listed = (kernels = &fn##_entry, true);                   \
  }
