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

constexpr int64_t kNarrow = 1 << 15;  // weights of one block whose sums fit 32 bits: see select.cuh

// Where a multiprocessor has one block alone, that may have all registers.
template <int Blocks, int Warps, bool Large>
__global__ void __launch_bounds__(32 * Warps, Blocks > 2 || Warps == 32 ? 1 : 2)
    draw_rows(const __grid_constant__ Rows rows) {
  extern __shared__ __align__(16) char memory[];
  using Draw = Row<Blocks, Warps, Large>;
  auto& shared = *reinterpret_cast<typename Draw::Memory*>(memory);
  let_next_start();
  Draw::begin(shared);
  wait_for_previous();
  Draw(rows, shared, reinterpret_cast<float*>(memory + sizeof(shared))).draw();
}

template <int Blocks, int Warps, bool Large>
bool start_if_it_fits(Stream& s, int64_t b, Rows rows, int64_t most) {
  using Memory = typename Row<Blocks, Warps, Large>::Memory;
  constexpr int64_t kStatic = 1024;  // what the driver keeps of a block's shared memory
  constexpr int64_t own = sizeof(Memory), warps = Blocks * Warps;
  static_assert(sizeof(Memory) % 16 == 0);
  const int64_t piece = (rows.v + warps * 4 - 1) / (warps * 4) * 4;
  const int64_t bytes = own + (Large ? 0 : piece * Warps * int64_t{sizeof(float)});
  if (!Large && (rows.v > kNarrow * Blocks || bytes + kStatic > most)) return false;
  rows.piece = static_cast<uint32_t>(piece);
  cudaFuncSetAttribute(draw_rows<Blocks, Warps, Large>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  launch(s.handle, draw_rows<Blocks, Warps, Large>,
         {static_cast<unsigned>(b * Blocks), 32 * Warps, static_cast<size_t>(bytes), Blocks}, rows);
  return true;
}
template <int Blocks, int Warps>
void start(Stream& s, int64_t b, const Rows& rows, int64_t most) {
  if (!start_if_it_fits<Blocks, Warps, false>(s, b, rows, most))
    start_if_it_fits<Blocks, Warps, true>(s, b, rows, most);
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
                  0};
  int device = 0, most = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  // What was fastest for so many rows (docs/kernels/sampling.md): more blocks have fewer ids each, and owe each
  // other more. A block that has a multiprocessor alone has 1,024 threads, but of eight blocks 512: 12 ids a thread.
  if (!starts_early())
    start<1, 16>(s, b, rows, most);
  else if (b <= 8 || v > 2 * kNarrow)
    start<8, 16>(s, b, rows, most);
  else if (b <= 16)
    start<4, 32>(s, b, rows, most);
  else if (2 * b <= multiprocessors)
    start<2, 32>(s, b, rows, most);
  else
    start<2, 16>(s, b, rows, most);
}
KERNEL(sample)

}  // namespace ss::cuda
