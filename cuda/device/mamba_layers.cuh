// Layers of a decode step for one sequence, in one kernel. kLayerBlocks blocks run at once, and each
// has its own channels and its own rows of every layer's weights:
//   norm     every block makes the normed row: what the layer before added comes as words
//   in_proj  rows x and z of the block's channels; their convolution, u
//   x_proj   u's share of each column; one warp somewhere adds up all blocks' shares of three columns
//   dt_proj  and one step of the states, for the block's channels; y goes to all blocks
//   out_proj the block's rows, from all channels; to all blocks
// so a layer is four exchanges (exchange.cuh) of some KiB. No exchange holds up the weights: one warp
// brings them into a ring in shared memory (weight_ring.cuh), layers ahead where they are small, and
// a layer's small tensors are asked into the L2 while the layer before is at work. The tensor cores
// multiply: of their 16 rows one holds activations, the weights are the other operand. The final norm and
// the head may follow (layers_head.cuh).
#pragma once
#include "dependent.cuh"
#include "layers_head.cuh"
#include "mamba_layer_phases.cuh"

namespace ss::cuda {

// The rows of weights that a block needs, in the order in which it does.
template <class T, int Model>
__device__ __forceinline__ void fill_ring(const Layers<T>& s, const Ring& ring) {
  using Size = LayerSizes<Model>;
  constexpr int channels = Size::channels, out_rows = Size::out_rows, columns = Size::columns;
  const int lane = threadIdx.x % 32, block = blockIdx.x;
  const uint64_t policy = read_once();
  RingFiller filler{ring, kTilesAhead};
  for (int layer = 0; layer < s.layers; layer++) {
    const T* in = s.layer[layer].in_proj;
    for (int unit = 0; unit < 2 * channels; unit += kTileRows)
      for (int at = 0; at < Size::m; at += columns) {
        const int i = unit + lane;  // rows of x, then of z
        const int64_t row = block * channels + (i < channels ? i : Size::d + i - channels);
        filler.fill(in + row * Size::m + at, kTileRows, 2 * columns, policy);
      }
    const T* out = s.layer[layer].out_proj;
    for (int done = 0; done < out_rows; done += kTileRows)
      for (int at = 0; at < Size::d; at += columns) {
        const int64_t row = block * out_rows + done + lane;
        const int rows = out_rows - done < kTileRows ? out_rows - done : kTileRows;
        filler.fill(out + row * Size::d + at, rows, 2 * columns, policy);
      }
  }
  fill_head<Size>(s.head, [&](const T* from, int rows, int bytes) { filler.fill(from, rows, bytes, policy); });
}

template <class T, int Model>
__global__ void __launch_bounds__(kLayerThreads + 32, 1)
    mamba_layers(const __grid_constant__ Layers<T> s) {
#if __CUDA_ARCH__ >= 900
  using Size = LayerSizes<Model>;
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<LayerMemory<Size>*>(
      memory + s.stages * Ring::stage_bytes(Size::columns));
  const Ring ring{memory, shared.full, shared.free, s.stages, 2 * Size::columns + kRowGap};
  if (threadIdx.x == 0) ring.init(kLayerThreads);
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= kLayerThreads) {
    fill_ring<T, Model>(s, ring);
    return;
  }

  const int32_t slot = s.slots[0];
  if (blockIdx.x == 0 && threadIdx.x < 2) {
    const int i = static_cast<int>(threadIdx.x);
    if (s.offsets[i] != i) s.bad_offset->report(i, s.offsets[i], i);
    if (i == 0 && slot >= s.pool) s.bad_slot->report(0, slot, s.pool);
  }
  LayerStep<T, Model> step{s, shared, ring};
  step.slot = slot < s.pool ? slot : -1;
  step.round = s.words[0].round;
  step.begin();
#pragma unroll 1
  for (int layer = 0; layer < s.layers; layer++) {
    const Layer<T>& l = s.layer[layer];
    step.round++;
    if (layer + 1 == s.layers) let_next_start();
    step.load(l);
    if (layer + 1 < s.layers) step.ask_for(s.layer[layer + 1]);
    if (layer > 0) step.add_mixed();
    step.norm(l);
    step.template multiply<2 * Size::channels / kTileRows, Size::m / Size::columns>();
    step.convolve(l);
    step.share();
    step.load_states(l);
    if (step.warp == kLayerWarps - 1 && step.block < Size::dbc_words) step.add_shares(l);
    step.get_dbc();
    step.advance(l);
    step.get_y();
    step.template multiply<(Size::out_rows + kTileRows - 1) / kTileRows, Size::d / Size::columns>();
    step.leave(l);
  }
  if (s.head.rows > 0) run_head<Size>(step, s.head);
  // All blocks have begun: this one has had words of all of them.
  if (blockIdx.x == 0 && threadIdx.x == 0) s.words[0].round = step.round;
#endif
}

}  // namespace ss::cuda
