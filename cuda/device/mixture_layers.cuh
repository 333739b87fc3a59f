// Layers of a decode step for one sequence, Mamba's and mixtures of experts, in one kernel.
// kLayerBlocks blocks run at once; a Mamba layer is as in mamba_layers.cuh, four exchanges. A mixture of
// experts is two:
//   norm     every block makes the normed row, all logits, and so the choice
//   up       the block's rows of the chosen expert's first matrix; the hidden row goes to all blocks
//   down     the block's rows of the second; to all blocks
// Sizes need not come out even over blocks, warps and tiles. The ring of weights runs ahead as there, but
// an expert's have to wait for its choice. Of few experts it is guessed during the Mamba layer before
// (mixture_guess.cuh); until then the next Mamba layer's are asked into the L2.
// mamba_layers.cuh does the sizes that come out even without experts: this one took 3 to 6 % longer there.
#pragma once
#include "dependent.cuh"
#include "layers_head.cuh"
#include "mixture_experts.cuh"
#include "mixture_mamba.cuh"

namespace ss::cuda::mixture {

// Keeps what a warp asks for in advance to a rate.
struct Pace {
  long long due = 0;  // by the clock

  // Until `bytes` more may be asked for, at so many clocks for each KiB.
  __device__ void wait(int bytes, int clocks) {
    long long now = clock64();
    while (now < due) now = clock64();
    due = now + (bytes * clocks >> 10);
  }
};

// As RingFiller, with more tiles under way where they are not full.
template <class Size>
struct TileFiller {
  Ring ring;
  Pace pace{};
  int asked = 0;    // tiles under way, as far as is known
  RingPlace due{};  // the oldest of them

  // `rows` rows of `bytes` each, `pitch` apart in the tile; lane i gives where row i begins. Those of a guess
  // keep the pace.
  __device__ void fill(const void* from, int rows, int bytes, int pitch, uint64_t policy, bool guessed) {
    constexpr int kFull = kTileRows * 2 * Size::columns;
    const int lane = threadIdx.x % 32, stage = ring.at.stage, most = kTilesAhead * kFull / (rows * bytes);
    wait_barrier(&ring.free[stage], ring.at.parity ^ 1);  // the first time round it is free
    for (; asked >= (most < ring.stages ? most : ring.stages - 1); asked--) {
      wait_barrier(&ring.full[due.stage], due.parity);
      due.next(ring.stages);
    }
    asked++;
    if (lane == 0) arrive_expecting(&ring.full[stage], static_cast<uint32_t>(rows * bytes));
    __syncwarp();
    const auto copy = [&] {
      copy_bulk(ring.tile() + lane * pitch, from, static_cast<uint32_t>(bytes), &ring.full[stage],
                policy);
    };
    if (!guessed && lane < rows) copy();
    for (int row = 0; guessed && row < rows; row++) {
      pace.wait(bytes, kGuessClocks);
      if (lane == row) copy();
    }
    ring.at.next(ring.stages);
  }
};

// Whether the phase of that parity is complete.
__device__ __forceinline__ bool barrier_done(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#endif
  return done != 0;
}

// `count` rows of Columns columns, of which lane i says where row at + i begins.
template <int Columns, class Size, class F>
__device__ __forceinline__ void fill_rows(TileFiller<Size>& filler, int count, uint64_t policy, bool guessed,
                                          F&& row) {
  constexpr bool kLong = Columns != Size::m;
  constexpr int kPitch = kLong ? Size::long_pitch : 2 * Size::columns + kRowGap;
  using C = Cut<Columns, kLong ? Size::long_columns : Size::columns>;
  const int lane = threadIdx.x % 32, each = kLong ? count : tile_rows(count);
  for (int at = 0; at < count; at += each) {
    const auto* from = row(at + lane < count ? at + lane : count - 1);
    for (int tile = 0; tile < C::tiles; tile++) {
      const int begin = C::begin(tile), end = C::begin(tile + 1);
      filler.fill(from + begin * kStepColumns, count - at < each ? count - at : each,
                  (end - begin) * 2 * kStepColumns, kPitch, policy, guessed);
    }
  }
}

// Where the rows of weights lie that a block needs of a layer.
template <class T, class Size>
struct BlockRows {
  static constexpr int m = Size::m, d = Size::d, h = Size::h;
  const int block = blockIdx.x;
  const int first = Size::Channels::begin(block), channels = Size::Channels::count(block);
  const int first_hidden = Size::HiddenRows::begin(block), hidden = Size::HiddenRows::count(block);
  const int first_row = Size::OutRows::begin(block), rows = Size::OutRows::count(block);

  __device__ const T* in_proj(const MambaLayer<T>& l, int i) const {  // rows of x, then of z
    return l.in_proj + int64_t{i < channels ? first + i : d + first + i - channels} * m;
  }
  __device__ const T* out_proj(const MambaLayer<T>& l, int i) const {
    return l.out_proj + int64_t{first_row + i} * d;
  }
  __device__ int ups(const ExpertLayer<T>& l) const { return l.gated ? 2 * hidden : hidden; }
  __device__ const T* up(const ExpertLayer<T>& l, int64_t expert, int i) const {
    const int row = i < hidden ? first_hidden + i : h + first_hidden + i - hidden;
    return l.up + (expert * (l.gated ? 2 * h : h) + row) * m;
  }
  __device__ const T* down(const ExpertLayer<T>& l, int64_t expert, int i) const {
    return l.down + (expert * m + first_row + i) * h;
  }

  // Rows into the L2 one by one, from `at` on, until the barrier says that there is something better to do:
  // a Mamba layer's, or an expert's of the second matrix.
  __device__ void ask_until(uint64_t* barrier, uint32_t parity, Pace& pace, const MambaLayer<T>& l,
                            int& at) const {
    for (; at < 2 * channels + rows && !done(barrier, parity); at++)
      if (at < 2 * channels)
        ask_row(in_proj(l, at), m, pace);
      else
        ask_row(out_proj(l, at - 2 * channels), d, pace);
  }
  __device__ void ask_until(uint64_t* barrier, uint32_t parity, Pace& pace, const ExpertLayer<T>& l,
                            int expert) const {
    for (int i = 0; i < rows && !done(barrier, parity); i++) ask_row(down(l, expert, i), h, pace);
  }

 private:
  __device__ static bool done(uint64_t* barrier, uint32_t parity) {
    return __any_sync(0xffffffffu, barrier_done(barrier, parity));
  }
  __device__ static void ask_row(const T* from, int columns, Pace& pace) {
    const int bytes = columns * static_cast<int>(sizeof(T));
    pace.wait(bytes, kAskClocks);
    if (threadIdx.x % 32 == 0) prefetch_weights(from, static_cast<uint32_t>(bytes));
  }
};

// All of them, in the order in which they are needed.
template <class T, class Size>
__device__ __forceinline__ void fill_ring(const Layers<T>& s, LayerMemory<Size>& shared, const Ring& ring) {
  const BlockRows<T, Size> of;
  const uint64_t policy = read_once();
  TileFiller<Size> filler{ring};
  uint32_t parity = 0, guess_parity = 0;
  for (int layer = 0; layer < s.layers; layer++) {
    if (s.layer[layer].has_experts) {
      const ExpertLayer<T>& l = s.layer[layer].experts;
      const MambaLayer<T>* next =
          layer + 1 < s.layers && !s.layer[layer + 1].has_experts ? &s.layer[layer + 1].mamba : nullptr;
      int guess = -1, asked = 0;
      if (is_guessed(s, layer)) {
        if (next) of.ask_until(&shared.normed, guess_parity, filler.pace, *next, asked);
        wait_barrier(&shared.normed, guess_parity);
        guess_logit<T>(shared, l, kLayerWarps - 1);
        if (next) of.ask_until(&shared.guessed, guess_parity, filler.pace, *next, asked);
        wait_barrier(&shared.guessed, guess_parity);
        guess_parity ^= 1;
        guess = best_of(shared.guess, l.e);
        fill_rows<Size::m, Size>(filler, of.ups(l), policy, true,
                                 [&](int i) { return of.up(l, guess, i); });
        of.ask_until(&shared.routed, parity, filler.pace, l, guess);
      }
      if (next) of.ask_until(&shared.routed, parity, filler.pace, *next, asked);
      wait_barrier(&shared.routed, parity);
      parity ^= 1;
      const int expert = best_of(shared.logits, l.e);
      if (guess != expert)
        fill_rows<Size::m, Size>(filler, of.ups(l), policy, false,
                                 [&](int i) { return of.up(l, expert, i); });
      fill_rows<Size::h, Size>(filler, of.rows, policy, false, [&](int i) { return of.down(l, expert, i); });
    } else {
      const MambaLayer<T>& l = s.layer[layer].mamba;
      fill_rows<Size::m, Size>(filler, 2 * of.channels, policy, false, [&](int i) { return of.in_proj(l, i); });
      fill_rows<Size::d, Size>(filler, of.rows, policy, false, [&](int i) { return of.out_proj(l, i); });
    }
  }
  fill_head<Size>(s.head, [&](const T* from, int rows, int bytes) {
    filler.fill(from, rows, bytes, ring.pitch, policy, false);
  });
}

template <class T, class Size>
__global__ void __launch_bounds__(kLayerThreads + 32, 1)
    run_layers(const __grid_constant__ Layers<T> s) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  auto& shared =
      *reinterpret_cast<LayerMemory<Size>*>(memory + s.stages * Ring::stage_bytes(Size::columns));
  const Ring ring{memory, shared.full, shared.free, s.stages, 2 * Size::columns + kRowGap};
  if (threadIdx.x == 0) {
    init_barrier(&shared.routed, kLayerWarps);
    init_barrier(&shared.normed, 1);
    init_barrier(&shared.guessed, kLayerWarps);
    ring.init(kLayerThreads);
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= kLayerThreads) {
    fill_ring<T, Size>(s, shared, ring);
    return;
  }

  const int32_t slot = s.slots ? s.slots[0] : -1;
  if (s.offsets && blockIdx.x == 0 && threadIdx.x < 2) {
    const int i = static_cast<int>(threadIdx.x);
    if (s.offsets[i] != i) s.bad_offset->report(i, s.offsets[i], i);
    if (i == 0 && slot >= s.pool) s.bad_slot->report(0, slot, s.pool);
  }
  LayerBlock<T, Size> block{s, shared, ring};
  MambaPhases<T, Size> mamba{block};
  ExpertPhases<T, Size> experts{block};
  mamba.slot = slot < s.pool ? slot : -1;
  block.round = s.words[0].round;
  block.begin();
#pragma unroll 1
  for (int at = 0; at < s.layers; at++) {
    const Layer<T>& l = s.layer[at];
    const bool last = at + 1 == s.layers;
    block.round++;
    if (last) let_next_start();
    if (l.has_experts)
      experts.load(l.experts);
    else
      mamba.load(l.mamba);
    if (!last) {
      const Layer<T>& next = s.layer[at + 1];
      if (next.has_experts)
        experts.ask_for(next.experts);
      else
        mamba.ask_for(next.mamba);
    }
    if (at > 0) block.add_mixed();
    if (l.has_experts)
      experts.run(l.experts, is_guessed(s, at));
    else
      mamba.run(l.mamba, is_guessed(s, at + 1) ? &s.layer[at + 1].experts : nullptr);
  }
  if (s.head.rows > 0) run_head<Size>(block, s.head);
  // All blocks have begun: this one has had words of all of them.
  if (blockIdx.x == 0 && threadIdx.x == 0) s.words[0].round = block.round;
#endif
}

}  // namespace ss::cuda::mixture
