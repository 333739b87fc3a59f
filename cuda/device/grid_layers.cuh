// Layers of a decode step of 2 to 64 sequences of a wide model, in one kernel. kGridBlocks blocks run at once,
// and each has its own channels for all sequences, through all layers:
//   norm      block i makes row i of the residual's sum and normed: it alone has that row
//   in_proj   x and z of the block's channels; their convolution, u
//   x_proj    what the channels add to dbc goes to memory: block i adds up half a row of all blocks' shares
//   dt_proj   and one step of the states, for the block's channels; gated y to memory
//   out_proj  a block has a quarter of k and the columns of four blocks; who has a row adds up the quarters
// so a layer is five exchanges through the L2. Weights depend on none of them: they come through a ring in shared
// memory, which runs on through all exchanges. Tokens are the 64-row side of wgmma, weights the other. Eight warps
// compute; four ask: for weights, for what other blocks have left, for states, and to send what this one leaves them.
#pragma once
#include "dependent.cuh"
#include "grid_layer_phases.cuh"

namespace ss::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The weights of a block, in the order in which it needs them: by one thread.
template <class T, class Size>
__device__ __forceinline__ void ask_for_weights(const GridLayers<T>& s, GridMemory<Size>& rest, GridWeights<Size> w) {
  using W = GridWeights<Size>;
  constexpr int channels = Size::channels, columns = Size::columns;
  const int block = blockIdx.x, channel = block * channels;
  const uint64_t once = read_once();
#pragma unroll 1
  for (int layer = 0; layer < s.layers; layer++) {
    const GridLayer<T>& l = s.layer[layer];
    if (layer + 1 < s.layers) {
      const GridLayer<T>& next = s.layer[layer + 1];
      prefetch_map(next.in_proj), prefetch_map(next.x_proj), prefetch_map(next.dt_proj), prefetch_map(next.out_proj);
    }
#pragma unroll 1
    for (int i = 0; i < Size::in_stages; i++) {
      char* const to = w.place(W::kBytes);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        char* const box = to + j * columns * 128;
        w.ask(box, l.in_proj, i * Size::depth + j * 64, channel, once);
        w.ask(box + channels * 128, l.in_proj, i * Size::depth + j * 64, Size::d + channel, once);
      }
      w.next();
    }
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
      w.ask(w.place(Size::half * 128), l.x_proj, channel, i * Size::half, once);
      w.next();
    }
    char* const rank = w.place(Size::rank_boxes * channels * 128);
#pragma unroll
    for (int j = 0; j < Size::rank_boxes; j++) w.ask(rank + j * channels * 128, l.dt_proj, j * 64, channel, once);
    w.next();
    const int first = block % kGridParts * (Size::d / kGridParts);
#pragma unroll 1
    for (int i = 0; i < Size::out_stages; i++) {
      char* const to = w.place(W::kBytes);
#pragma unroll
      for (int j = 0; j < 2; j++)
        w.ask(to + j * columns * 128, l.out_proj, first + i * Size::depth + j * 64, block / kGridParts * columns, once);
      w.next();
    }
  }
}

// Activations as others have left them, and word of what else they have done: by one warp.
template <class T, class Size>
struct GridListener {
  const GridLayers<T>& s;
  GridMemory<Size>& rest;
  char* memory;
  typename Size::Wide wide;
  typename Size::Act act;
  uint32_t opened = 0;
  const int lane = threadIdx.x % 32, block = blockIdx.x;

  __device__ __forceinline__ void pass_on(Told what, uint32_t round) const {
    hear(s.told, what, 0, kGridBlocks, round);
    if (lane == 0) arrive(&rest.heard);
  }
  __device__ __forceinline__ void wait_until_open() {
    wait_barrier(&rest.open, opened);
    opened ^= 1;
  }
  template <class Ring>
  __device__ __forceinline__ void fill(Ring& act, int stages, const CUtensorMap& map, int column) {
    if (lane == 0) {
      show_to_engine();
      const uint64_t again = read_again();
#pragma unroll 1
      for (int i = 0; i < stages; i++) {
        char* const to = act.place(static_cast<uint32_t>(2 * 128 * s.tall));
        act.ask(to, map, column + i * Size::depth, 0, again);
        act.ask(to + Size::box, map, column + i * Size::depth + 64, 0, again);
        act.next();
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ void run(uint32_t round) {
    if (lane == 0) prefetch_map(s.normed), prefetch_map(s.dbc), prefetch_map(s.gated);
    const int part = block % kGridParts;
#pragma unroll 1
    for (int layer = 0; layer < s.layers; layer++) {
      if (layer > 0) {
        if (block < s.count) pass_on(kMixed, round);
        wait_until_open();
        wait_barrier(&rest.taken, 1);
        wait_barrier(&rest.states_gone, (layer - 1) & 1);
      }
      round++;
      hear(s.told, kNormedRows, 0, s.count, round);
      fill(wide, Size::in_stages, s.normed, 0);
      if (block < 2 * s.count) pass_on(kShared, round);
      wait_until_open();
      hear(s.told, kAdded, 0, 2 * s.count, round);
      if (lane == 0) {
        show_to_engine();
        arrive_expecting(&rest.dbc_full, static_cast<uint32_t>(Size::dbc_boxes * 128 * s.tall));
        const uint64_t again = read_again();
#pragma unroll
        for (int j = 0; j < Size::dbc_boxes; j++)
          ask_for_box(memory + j * Size::box, s.dbc, j * 64, 0, &rest.dbc_full, again);
      }
      __syncwarp();
      wait_until_open();
      wait_barrier(&rest.taken, 0);
      hear(s.told, kGatedRows, part * (kGridBlocks / kGridParts), kGridBlocks / kGridParts, round);
      fill(act, Size::out_stages, s.gated, part * (Size::d / kGridParts));
    }
    if (block < s.count) pass_on(kMixed, round);
  }
};

// A block's states, as many rows at a time as half of their place holds, and back to memory: by one warp.
template <class T, class S, class Size>
__device__ __forceinline__ void move_states(const GridLayers<T>& s, GridMemory<Size>& rest, char* states) {
  constexpr int kRow = Size::channels * kLayerStates * int{sizeof(S)}, kRows = Size::state_bytes / 2 / kRow;
  const int lane = threadIdx.x % 32, of_layer = (s.count + 2 * kRows - 1) / (2 * kRows) * 2;
  const uint64_t once = read_once();
  // Of that use of a place: f(where a lane's row lies, and its pool).
  const auto rows = [&](int layer, int use, auto f) {
    const int row = use * kRows + lane;
    const int own = lane < kRows && row < s.count ? rest.slot[row] : -1;
    char* const pool = static_cast<char*>(s.layer[layer].scan_state);
    f(own >= 0, states + use % 2 * (Size::state_bytes / 2) + lane * kRow,
      pool + (static_cast<int64_t>(own) * kGridBlocks + static_cast<int>(blockIdx.x)) * kRow);
  };
  uint32_t parity = 0;
#pragma unroll 1
  for (int layer = 0; layer < s.layers; layer++) {
    wait_barrier(&rest.states_wanted, layer & 1);
#pragma unroll 1
    for (int use = 0; use < of_layer + 2; use++) {
      const int place = use % 2;
      if (use >= 2) {
        wait_barrier(&rest.states_free[place], parity);
        if (place == 1) parity ^= 1;
        // Not sooner: the way to memory would be in front of y's.
        if (use == of_layer) wait_barrier(&rest.y_told, layer & 1);
        rows(layer, use - 2, [&](bool there, char* own, char* pool) {
          if (there) copy_back(pool, own, kRow);
        });
        wait_for_copies_back<false>();
        __syncwarp();
      }
      if (use < of_layer)
        rows(layer, use, [&](bool there, char* own, const char* pool) {
          const unsigned all = __ballot_sync(0xffffffffu, there);
          if (lane == 0) arrive_expecting(&rest.states_full[place], static_cast<uint32_t>(__popc(all) * kRow));
          __syncwarp();
          if (there) copy_bulk(own, pool, kRow, &rest.states_full[place], once);
        });
    }
    if (lane == 0) arrive(&rest.states_gone);
  }
  wait_for_copies_back<true>();
}

// What the block leaves the others goes to memory, and they are told: by one warp, which writes nothing else.
template <class T, class Size>
__device__ __forceinline__ void send(const GridLayers<T>& s, GridMemory<Size>& rest, char* act, char* states,
                                     uint32_t round) {
  constexpr int half = Size::half, columns = Size::columns, channels = Size::channels;
  const int block = blockIdx.x, lane = threadIdx.x % 32;
  uint32_t staged = 0;
  const auto wait = [&] {
    wait_barrier(&rest.staged, staged);
    staged ^= 1;
    return lane == 0;
  };
  if (lane == 0) prefetch_map(s.own_gated);
#pragma unroll 1
  for (int layer = 0; layer < s.layers; layer++) {
    round++;
    if (wait()) {
#pragma unroll
      for (int i = 0; i < 2; i++)
        copy_back(s.shares + static_cast<int64_t>(2 * block + i) * s.count * half, states + i * kGridRows * half * 4,
                  static_cast<uint32_t>(s.count * half * 4));
      wait_for_copies_back<true>();
      tell_of_copies(s.told, kShared, round);
      arrive(&rest.states_wanted);
    }
    __syncwarp();
    if (wait()) {
      send_box(s.own_gated, block * channels, 0, act + Size::y_at);
      wait_for_copies_back<true>();
      tell_of_copies(s.told, kGatedRows, round);
      arrive(&rest.taken);
      arrive(&rest.y_told);
    }
    __syncwarp();
    if (wait()) {
      copy_back(s.mixed + static_cast<int64_t>(block) * s.count * columns, act + Size::u_at,
                static_cast<uint32_t>(s.count * columns * 4));
      wait_for_copies_back<true>();
      tell_of_copies(s.told, kMixed, round);
      arrive(&rest.taken);
    }
    __syncwarp();
  }
}

#endif

template <class T, class S, int Model>
__global__ void __launch_bounds__(kGridThreads + 32 * kGridAskers, 1)
    grid_layers(const __grid_constant__ GridLayers<T> s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = GridSizes<Model>;
  extern __shared__ __align__(1024) char memory[];
  auto& whole = *reinterpret_cast<GridWhole<Size>*>(memory);
  GridMemory<Size>& rest = whole.rest;
  const typename Size::Wide wide{whole.act, rest.wide_full, rest.wide_free};
  const typename Size::Act act{whole.act, rest.act_full, rest.act_free};
  const GridWeights<Size> weights{whole.weights, whole.weights_full, whole.weights_free};
  const int thread = threadIdx.x;
  if (thread == 0) {
    act.init(8), wide.init(8);
    init_barrier(&rest.states_wanted, 1), init_barrier(&rest.states_gone, 1);
    weights.init(8);
    for (int i = 0; i < 2; i++) init_barrier(&rest.states_full[i], 1), init_barrier(&rest.states_free[i], 8);
    init_barrier(&rest.heard, 1), init_barrier(&rest.open, 8), init_barrier(&rest.dbc_full, 1);
    init_barrier(&rest.staged, 8), init_barrier(&rest.taken, 1), init_barrier(&rest.y_told, 1);
    publish_barriers();
  }
  wait_for_previous();
  if (blockIdx.x == 0)
    for (int i = thread; i <= s.count; i += kGridThreads) {
      if (s.offsets[i] != i) s.bad_offset->report(i, s.offsets[i], i);
      if (i < s.count && s.slots[i] >= s.pool) s.bad_slot->report(i, s.slots[i], s.pool);
    }
  if (thread < kGridRows) {
    const int slot = thread < s.count ? s.slots[thread] : -1;
    rest.slot[thread] = slot < s.pool ? slot : -1;
  }
  const uint32_t round = s.told[kToldWords];
  __syncthreads();
  if (thread == kGridThreads) {
    ask_for_weights<T, Size>(s, rest, weights);
  } else if (thread / 32 == kGridThreads / 32 + 1) {
    GridListener<T, Size>{s, rest, whole.act, wide, act}.run(round);
  } else if (thread / 32 == kGridThreads / 32 + 2) {
    move_states<T, S, Size>(s, rest, whole.states);
  } else if (thread / 32 == kGridThreads / 32 + 3) {
    send<T, Size>(s, rest, whole.act, whole.states, round);
  } else if (thread < kGridThreads) {
    GridStep<T, S, Size> step{{s, rest, whole.act, whole.states, wide, act, weights, round}};
    step.begin();
#pragma unroll 1
    for (int layer = 0; layer < s.layers; layer++) step.run(layer);
    step.end();
  }
  // All blocks have begun: this one has heard of all of them.
  if (blockIdx.x == 0 && thread == 0) s.told[kToldWords] = round + static_cast<uint32_t>(s.layers);
#endif
}

}  // namespace ss::cuda
