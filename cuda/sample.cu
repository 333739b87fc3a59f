// Draws one token a row: repetition penalty, temperature, top-k, top-p, min-p, in this order, each
// on what the one before has left. Greedy where the temperature is 0. The random number of a row
// comes from its own seed and position alone, so that a row's tokens do not depend on the batch.
//
// A row belongs to a cluster of two to eight blocks (one block on cards without clusters); how they
// draw stands in device/draw.cuh. Nothing sorts the vocabulary, and the logits are read once.
//
// Answers are those of the CPU kernel, ties by the smaller id included. What may differ is the last
// bit of exp, and that masses are multiples of 2^-40 (the largest weight is 1): another token
// follows only where a random number falls within that distance of a boundary.
#include "card.h"
#include "device/draw.cuh"
#include "launch.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int64_t kNarrow = 1 << 15;  // weights of one block whose sums fit: see select.cuh

template <int Blocks, bool Wide>
__global__ void __launch_bounds__(kThreads, Blocks == 8 ? 1 : 2)
    draw_rows(const __grid_constant__ Rows rows) {
  extern __shared__ __align__(16) char memory[];
  using Draw = Row<Blocks, kWarps, Wide>;
  auto& shared = *reinterpret_cast<typename Draw::Memory*>(memory);
  let_next_start();
  Draw::begin(shared);
  wait_for_previous();
  Draw(rows, shared, reinterpret_cast<float*>(memory + sizeof(shared))).draw();
}

template <int Blocks, bool Wide>
void start(Stream& s, int64_t b, Rows rows, int64_t most) {
  constexpr int64_t kStatic = 1024;  // what the driver keeps of a block's shared memory
  const int64_t own = sizeof(typename Row<Blocks, kWarps, Wide>::Memory), warps = Blocks * kWarps;
  static_assert(sizeof(typename Row<Blocks, kWarps, Wide>::Memory) % 16 == 0);
  const int64_t piece = (rows.v + warps * 4 - 1) / (warps * 4) * 4;
  const int64_t kept = piece * kWarps * int64_t{sizeof(float)};
  rows.piece = static_cast<uint32_t>(piece);
  rows.fits = own + kept + kStatic <= most;
  const auto shared = static_cast<size_t>(rows.fits ? own + kept : own);
  cudaFuncSetAttribute(draw_rows<Blocks, Wide>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(shared));
  launch(s.handle, draw_rows<Blocks, Wide>,
         {static_cast<unsigned>(b * Blocks), kThreads, shared, Blocks}, rows);
}

}  // namespace

void sample(Stream& s, In logits, In temperature, In top_k, In top_p, In min_p, In penalty, In seed,
            Opt stop, Opt quiet, OptInOut seen, InOut position, InOut token, InOut logprob) {
  const int64_t b = logits.size(0), v = logits.size(1);  // ids are i32, and so is v
  if (b == 0 || v == 0) return;
  const bool holds = stop && quiet;
  int digits = 0;  // of v
  while (v >> digits) digits++;
  const int unit = 63 - digits < 40 ? 63 - digits : 40;
  const auto* data = logits.data<float>();
  const Rows rows{data,
                  logits.stride(),
                  static_cast<uint32_t>(v),
                  temperature.data<float>(),
                  top_p.data<float>(),
                  min_p.data<float>(),
                  penalty.data<float>(),
                  top_k.data<int32_t>(),
                  seed.data<int32_t>(),
                  seed.stride(),
                  holds ? stop.data<int32_t>() : nullptr,
                  holds ? quiet.data<int32_t>() : nullptr,
                  holds ? static_cast<int>(stop.size(0)) : 0,
                  seen ? seen.data<int32_t>() : nullptr,
                  seen ? seen.stride() : 0,
                  position.data<int32_t>(),
                  token.data<int32_t>(),
                  logprob.data<float>(),
                  s.fault("the logits of row %lld are not finite"),
                  static_cast<float>(int64_t{1} << unit),
                  static_cast<float>(int64_t{1} << 23) / static_cast<float>(int64_t{1} << unit),
                  reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                      (b == 1 || logits.stride() % 4 == 0),
                  false,
                  0};
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // Eight blocks a row where there are few rows: of more than these, clusters wait for one another,
  // and what blocks owe each other costs more than they save (16 rows: 36 us, by four blocks 22, by two 26).
  const auto begin = [&](auto narrow, auto wide, int blocks) {
    return v <= kNarrow * blocks ? narrow(s, b, rows, most) : wide(s, b, rows, most);
  };
  if (!starts_early())
    begin(start<1, false>, start<1, true>, 1);
  else if (b <= 8 || v > 2 * kNarrow)
    begin(start<8, false>, start<8, true>, 8);
  else if (b <= 16)
    start<4, false>(s, b, rows, most);
  else
    begin(start<2, false>, start<2, true>, 2);
}
KERNEL(sample)

}  // namespace ss::cuda
