// An optimizer's step over all parameters at once, each element met once: adamw moves 28 bytes an
// element, and as many more as an element of the copy has.
#include <algorithm>

#include "device/pack.cuh"
#include "device/reduce.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "scratch.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1056;  // the same on every card, so that sums are

struct Scaler {
  float scale, streak, steps, skipped, norm, loss;
};
struct Control {
  float take, factor, rate, first, second;
};

template <int N>
__global__ void __launch_bounds__(kThreads) square_parts(const float* x, int64_t n, double* parts) {
  constexpr int kMany = 32 / N;  // packs, few enough for f32
  let_next_start();
  wait_for_previous();
  double total = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads * N;
  for (int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * N; i < n; i += kMany * step) {
    float part = 0;
#pragma unroll
    for (int j = 0; j < kMany; j++) {
      if (i + j * step >= n) break;
      const Pack<N> some = Pack<N>::load(x + i + j * step);
#pragma unroll
      for (int k = 0; k < N; k++) part = fmaf(some.item[k], some.item[k], part);
    }
    total += part;
  }
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}
__global__ void __launch_bounds__(kThreads) add_square_parts(const double* parts, int64_t count, float* sum) {
  let_next_start();
  wait_for_previous();
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += parts[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *sum = static_cast<float>(*sum + total);
}

__global__ void plan(float* squares, float* loss, const float* rate, Scaler* scaler, float max_norm, float beta1,
                     float beta2, float interval, Control* control) {
  let_next_start();
  wait_for_previous();
  Scaler at = *scaler;
  Control out;
  const double norm = sqrt(static_cast<double>(*squares)) / at.scale;
  at.norm = static_cast<float>(norm);
  at.loss = *loss / at.scale;
  const bool take = isfinite(norm) && isfinite(at.loss);
  *squares = take || interval > 0 ? 0 : NAN;  // without a scale to change no step follows
  *loss = 0;
  const double clip = max_norm > 0 && norm > max_norm ? max_norm / (norm + 1e-6) : 1;
  out.take = take;
  out.factor = take ? static_cast<float>(clip / at.scale) : 0;
  out.rate = *rate;
  at.steps += take;
  at.skipped += !take;
  out.first = static_cast<float>(1 - pow(static_cast<double>(beta1), static_cast<double>(at.steps)));
  out.second = static_cast<float>(1 - pow(static_cast<double>(beta2), static_cast<double>(at.steps)));
  if (interval > 0) {
    at.streak = take ? at.streak + 1 : 0;
    if (!take) at.scale *= 0.5f;
    if (at.streak >= interval) {
      at.streak = 0;
      if (at.scale < 0x1p24f) at.scale *= 2;
    }
  }
  *scaler = at;
  *control = out;
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    update(float* p, float* m, float* v, const float* g, const Control* control, T* copy, int64_t n,
           float beta1, float beta2, float eps, float decay) {
  let_next_start();
  wait_for_previous();
  const Control c = *control;
  if (c.take == 0) return;
  const float keep = 1 - c.rate * decay, rate = c.rate / c.first, root = 1 / sqrtf(c.second);
  const int64_t step = int64_t{gridDim.x} * kThreads * N;
  for (int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * N; i < n; i += step) {
    Pack<N> p_i = Pack<N>::load(p + i), m_i = Pack<N>::load(m + i), v_i = Pack<N>::load(v + i);
    const Pack<N> g_i = Pack<N>::load(g + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const float at = g_i.item[k] * c.factor;
      m_i.item[k] = m_i.item[k] * beta1 + at * (1 - beta1);
      v_i.item[k] = v_i.item[k] * beta2 + at * at * (1 - beta2);
      p_i.item[k] =
          p_i.item[k] * keep - m_i.item[k] * rate / (sqrtf(v_i.item[k]) * root + eps);
    }
    p_i.store(p + i);
    m_i.store(m + i);
    v_i.store(v + i);
    if (copy) p_i.store(copy + i);
  }
}

__global__ void average_all(float* average, const float* x, int64_t n, float decay) {
  let_next_start();
  wait_for_previous();
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += step)
    average[i] += (x[i] - average[i]) * (1 - decay);
}

// A pack a thread: what ends early makes room for what is next.
unsigned all_blocks_for(int64_t packs) {
  return static_cast<unsigned>(std::min<int64_t>((packs + kThreads - 1) / kThreads, INT32_MAX));
}
unsigned blocks_for(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kBlocks ? blocks : kBlocks);
}

}  // namespace

void add_squares(Stream& s, In x, InOut sum) {  // [n], [1]
  const int64_t n = x.size(0);
  if (n == 0) return;
  const Scratch scratch(s, kBlocks * static_cast<int64_t>(sizeof(double)));
  if (!scratch.floats()) return;
  double* parts = reinterpret_cast<double*>(scratch.floats());
  const bool wide = n % 4 == 0 && packs<float>(x, 4);
  const unsigned blocks = blocks_for(wide ? n / 4 : n);
  launch(s.handle, wide ? square_parts<4> : square_parts<1>, {blocks, kThreads}, x.data<float>(), n, parts);
  launch(s.handle, add_square_parts, {1, kThreads}, parts, int64_t{blocks}, sum.data<float>());
}
KERNEL(add_squares)

void plan_step(Stream& s, InOut squares, InOut loss, In rate, InOut scaler, float max_norm, float beta1,
               float beta2, float interval, Out control) {
  launch(s.handle, plan, {1, 1}, squares.data<float>(), loss.data<float>(), rate.data<float>(),
         reinterpret_cast<Scaler*>(scaler.data<float>()), max_norm, beta1, beta2, interval,
         reinterpret_cast<Control*>(control.data<float>()));
}
KERNEL(plan_step)

void adamw(Stream& s, InOut parameter, InOut m, InOut v, In gradient, In control, OptInOut copy,
           float beta1, float beta2, float eps, float decay) {
  const int64_t n = parameter.size(0);
  if (n == 0) return;
  float *p = parameter.data<float>(), *first = m.data<float>(), *second = v.data<float>();
  const float* g = gradient.data<float>();
  const Control* c = reinterpret_cast<const Control*>(control.data<float>());
  with_float(copy ? copy.dtype() : DType::f32, [&](auto type) {
    using T = decltype(type);
    T* to = copy ? copy.data<T>() : nullptr;
    const bool wide = n % 4 == 0 && packs<float>(parameter, 4) && packs<float>(m, 4) &&
                      packs<float>(v, 4) && packs<float>(gradient, 4) && (!copy || packs<T>(copy, 4));
    if (wide)
      launch(s.handle, update<4, T>, {all_blocks_for(n / 4), kThreads}, p, first, second, g, c, to, n,
             beta1, beta2, eps, decay);
    else
      launch(s.handle, update<1, T>, {blocks_for(n), kThreads}, p, first, second, g, c, to, n, beta1,
             beta2, eps, decay);
  });
}
KERNEL(adamw)

void move_average(Stream& s, InOut average, In x, float decay) {
  if (x.size(0) > 0)
    launch(s.handle, average_all, {blocks_for(x.size(0)), kThreads}, average.data<float>(),
           x.data<float>(), x.size(0), decay);
}
KERNEL(move_average)

}  // namespace ss::cuda
