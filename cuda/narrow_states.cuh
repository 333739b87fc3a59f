// Scans of sequences whose states are kept in 16 bits: f32 copies of their rows of the pool go through
// the scan, and are rounded into the pool after it (device/stochastic.cuh). 8 more bytes a state
// move than with a pool of f32, which a scan of many tokens does not notice.
#pragma once
#include "device/stochastic.cuh"
#include "launch.cuh"
#include "scratch.h"

namespace ss::cuda {
namespace {

constexpr int kNarrowThreads = 256;

template <class S>
struct NarrowPool {
  S* state;  // [pool, row]
  int64_t stride, pool, row, n;
  const int32_t* slots;  // of the sequences, or null
  float* wide;           // [count, row]
  int32_t* wide_slots;   // [count]: i, or -1
  Fault* bad_slot;

  __device__ int64_t slot(int64_t i) const {
    const int64_t slot = slots ? slots[i] : i;
    return slot < pool ? slot : -1;
  }
};

template <class S>
__global__ void widen_states(const NarrowPool<S> p) {
  let_next_start();
  wait_for_previous();
  const int64_t i = blockIdx.y, slot = p.slot(i);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    p.wide_slots[i] = slot < 0 ? -1 : static_cast<int32_t>(i);
    if (p.slots && p.slots[i] >= p.pool) p.bad_slot->report(i, p.slots[i], p.pool);
  }
  if (slot < 0) return;
  const int64_t step = int64_t{gridDim.x} * kNarrowThreads;
  for (int64_t j = blockIdx.x * int64_t{kNarrowThreads} + threadIdx.x; j < p.row; j += step)
    p.wide[i * p.row + j] = to_float(p.state[slot * p.stride + j]);
}

// A thread has a channel, a warp 32 neighbours.
template <class S>
__global__ void narrow_states(const NarrowPool<S> p) {
  let_next_start();
  wait_for_previous();
  const int64_t i = blockIdx.y, c = blockIdx.x * int64_t{kNarrowThreads} + threadIdx.x;
  if (p.wide_slots[i] < 0) return;  // the whole block
  const bool there = c * p.n < p.row;
  const float* from = p.wide + i * p.row + c * p.n;
  S* to = p.state + p.slot(i) * p.stride + c * p.n;
  uint32_t seed = 0;
  for (int64_t j = 0; j < p.n && there; j++)
    seed = (seed ^ __float_as_uint(from[j])) * 0x9e3779b1u;
  seed = mixed(__reduce_xor_sync(0xffffffffu, seed) + static_cast<uint32_t>(c));
  if (!there) return;
  for (int64_t j = 0; j < p.n; j++) {
    const uint32_t random = isfinite(from[j]) ? mixed(seed + static_cast<uint32_t>(j)) & 0xffffu : 0u;
    reinterpret_cast<uint16_t*>(to)[j] =
        static_cast<uint16_t>(round_pair<S>(from[j], 0.0f, random));
  }
}

// Calls scan(slots, state) with f32 copies of the sequences' states: Views as an op is given.
template <class S, class F>
void scan_narrow(Stream& stream, int64_t count, const View* slots, const View& state, F&& scan) {
  const int64_t d = state.shape[1], n = state.shape[2], row = d * n;
  const Scratch scratch(stream, count * (row * static_cast<int64_t>(sizeof(float)) + 4));
  if (!scratch.floats()) return;
  NarrowPool<S> p{static_cast<S*>(state.data),
                  state.stride,
                  state.shape[0],
                  row,
                  n,
                  slots ? static_cast<const int32_t*>(slots->data) : nullptr,
                  scratch.floats(),
                  reinterpret_cast<int32_t*>(scratch.floats() + count * row),
                  stream.fault("slots[%lld] is %d, expected less than %lld, the rows of state")};
  const auto grid = [&](int64_t items) {
    return Grid{dim3(static_cast<unsigned>((items + kNarrowThreads - 1) / kNarrowThreads),
                     static_cast<unsigned>(count)),
                kNarrowThreads};
  };
  if (row > 0) launch(stream.handle, widen_states<S>, grid((row + 7) / 8), p);
  const View wide{p.wide, {count, d, n}, row, 3, DType::f32};
  const View wide_slots{p.wide_slots, {count}, 1, 1, DType::i32};
  scan(wide_slots, wide);
  if (row > 0) launch(stream.handle, narrow_states<S>, grid(d), p);
}

}  // namespace
}  // namespace ss::cuda
