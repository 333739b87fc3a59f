// scan_sequences for few channels: the warps of two blocks take chunks of 8 tokens by 8 channels, and the state
// goes from chunk to chunk. A warp first makes all of its chunk but the state it starts from: decays, dt u B,
// what the chunk adds to a state from zero, and exp(A sum dt). Neighbouring chunks, a run, are made at the same
// time; when all have told these two, each warp composes those before its own, and the last warp all of
// them: so the state is one multiplication and addition away from each, and goes on at once to the other block's run.
// A thread of a warp has four states of a channel and is the edge for two of its tokens. Two products are the
// tensor cores' (tf32, f32 sums): dt u B, with dt u in two parts, so that no accuracy is lost, and the sum
// over states of h C, with h cut to 11 bits, for results of 16 bits.
#pragma once
#include "cluster.cuh"
#include "dependent.cuh"
#include "mma.cuh"
#include "scan_plan.cuh"
#include "scan_relay_memory.cuh"
#include "turnstile.cuh"

namespace ss::cuda {

// Groups of 8 channels, which the two blocks of a cluster share, with Warps a block. Early: tokens of the next
// chunk whose decays are made while this one is scanned.
template <class T_, int Groups, int Warps, int Early>
struct RelayPlan {
  using T = T_;
  static constexpr int kGroups = Groups, kOfGroup = Warps, kEarly = Early, kCluster = 2;
  static constexpr int kWidth = 8 * Groups, kWarps = Groups * Warps, kThreads = 32 * kWarps;
  static constexpr int kRun = 8 * Warps, kStep = kRun * kCluster;  // tokens of a run; between a block's runs
  // Shared memory, in bytes. Of a warp: stages, dt of a chunk. Of a group, for kRelayRuns runs: what its chunks
  // but the last add and their decays, then the state that the run starts from.
  static constexpr int kTimes = kRelayStages * kRelayStage, kOwn = kTimes + 256;
  static constexpr int kShare = 1024, kBaton = (Warps - 1) * kShare, kRunBytes = kBaton + 512;
  static constexpr int kBytes = kWarps * kOwn + Groups * kRelayRuns * kRunBytes;
};

// A group's turnstiles: its warps have told what their chunks of a run add (the last has nothing to tell, but has read
// what was told before); the state that the run starts from is there. Who writes what is told has passed `told`
// of a run after the one that it writes over: warps that wait for it anyway, and the first one of two runs before.
struct RelayGroup {
  Turnstile told[kRelayRuns], ready[kRelayRuns];
};

// What is added and the decay of chunks and then one more.
__device__ __forceinline__ void compose(float (&added)[4], float (&decay)[4], const float (&more)[4],
                                        const float (&by)[4]) {
#pragma unroll
  for (int m = 0; m < 4; m++) added[m] = fmaf(by[m], added[m], more[m]), decay[m] *= by[m];
}

template <class P>
class RelayWarp {
  using T = typename P::T;
  struct Entered {
    RelayItems items;
    float dtu[2];
  };

  const Scan<T>& s;
  const int lane, g, q;
  RelayCopies<T, P::kStep> copies;
  const RelayTimes times;
  const uint32_t nothing;  // 0; the compiler does not know
  float A[4], D, bias;
  uint32_t mine[4];  // all bits where a token of this thread's stands
  char* y_at;
  int left;  // tokens from this thread's first on

 public:
  __device__ RelayWarp(const Scan<T>& s, int64_t begin, int tokens, int64_t first, int start, uint32_t own)
      : s(s),
        lane(threadIdx.x % 32),
        g(lane / 4),
        q(lane % 4),
        copies(s, begin, first, start, tokens, own),
        times(own + P::kTimes),
        nothing(static_cast<uint32_t>(s.n) >> 8),
        left(tokens - start - 2 * q) {
    const int64_t channel = first + g;
#pragma unroll
    for (int m = 0; m < 4; m++) A[m] = s.A[channel * s.A_stride + relay_state(m)] * kLog2e;
    D = s.D ? s.D[channel] : 0.0f, bias = s.delta_bias ? s.delta_bias[channel] : 0.0f;
    y_at = reinterpret_cast<char*>(s.y + (begin + start + 2 * q) * s.y_stride + channel);
#pragma unroll
    for (int k = 0; k < 4; k++) mine[k] = q == k ? ~0u : 0u;
  }

  // Number Turn of its group, in block `rank` of the cluster. shares and group: of its group; state: where its
  // channel's is left at the end, or null.
  template <int Turn>
  __device__ __forceinline__ void walk(unsigned rank, uint32_t shares, RelayGroup& group, float* state) {
    constexpr bool kLast = Turn + 1 == P::kOfGroup;
    constexpr int kReady = sizeof(group.told);
    const uint32_t turnstiles = shared_address(&group), own_shares = shares + lane * 16;
    const uint32_t to_shares = in_block(own_shares, rank ^ 1), to_turnstiles = in_block(turnstiles, rank ^ 1);
    const uint32_t y_row = static_cast<uint32_t>(s.y_stride) * 2, step = P::kStep | nothing;
    Entered next = enter<true>(left);
    float d[8], e[8][4];
    times.get(d);
#pragma unroll
    for (int k = 0; k < P::kEarly; k++) decay(e[k], d[k]);
    int run_left = left + 2 * q + Turn * 8;  // tokens from the run's first on
#pragma unroll 1
    for (unsigned round = 0; run_left > 0; run_left -= P::kStep, left -= P::kStep, round++) {
      const Entered now = next;
      const unsigned at_run = round % kRelayRuns;
      const uint32_t run = own_shares + at_run * P::kRunBytes, told = turnstiles + at_run * 8;
      float x[2][2][2][4], added[4], whole[4];
      if constexpr (kLast) arrive_at(told);
      products(now, x);
      const auto at = [&](int k, int m) -> float& { return x[k % 4 / 2][k % 2][m / 2][k / 4 * 2 + m % 2]; };
#pragma unroll
      for (int k = P::kEarly; k < 8; k++) decay(e[k], d[k]);
      decay(whole, ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7])));
#pragma unroll
      for (int m = 0; m < 4; m++) added[m] = at(0, m);
#pragma unroll
      for (int k = 1; k < 8; k++)
#pragma unroll
        for (int m = 0; m < 4; m++) added[m] = fmaf(e[k][m], added[m], at(k, m));
      if constexpr (Turn == 0) pass_at(turnstiles + (round - 2) % kRelayRuns * 8, (round - 2) / kRelayRuns);
      if constexpr (!kLast) {
        store_shared(run + Turn * P::kShare, added);
        store_shared(run + Turn * P::kShare + 512, whole);
        arrive_at(told);
      }
      next = enter<false>(left - P::kStep);
      float gate[2], Du[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        gate[j] = silu(half_of(now.items.z, j, T{}));
        Du[j] = D * half_of(now.items.u, j, T{});
      }

      // From the run's first token to this chunk's first; then for the last warp to the next run's. What need not
      // wait for the state is made part of what is waited for: else the compiler puts it behind.
      uint32_t before = __float_as_uint(gate[0]) ^ __float_as_uint(gate[1]);
      float run_added[4], run_decay[4];
      if constexpr (Turn > 0) {
        pass_at(told, round / kRelayRuns);
        load_shared(run_added, run), load_shared(run_decay, run + 512);
#pragma unroll
        for (int w = 1; w < Turn; w++) {
          float more[4], by[4];
          load_shared(more, run + w * P::kShare), load_shared(by, run + w * P::kShare + 512);
          compose(run_added, run_decay, more, by);
        }
        if constexpr (kLast) {
          float all_added[4], all_decay[4];
#pragma unroll
          for (int m = 0; m < 4; m++) all_added[m] = run_added[m], all_decay[m] = run_decay[m];
          compose(all_added, all_decay, added, whole);
#pragma unroll
          for (int m = 0; m < 4; m++) added[m] = all_added[m], whole[m] = all_decay[m];
        }
#pragma unroll
        for (int m = 0; m < 4; m++) {
          if (kLast)
            before ^= __float_as_uint(added[m]) ^ __float_as_uint(whole[m]);
          else
            before ^= __float_as_uint(run_added[m]) ^ __float_as_uint(run_decay[m]);
        }
      }
      pass_at(told + kReady, round / kRelayRuns | (before & nothing));
      float h[4];
      load_shared(h, run + P::kBaton);
      if constexpr (kLast) {
        float out[4];
#pragma unroll
        for (int m = 0; m < 4; m++) out[m] = fmaf(whole[m], h[m], added[m]);
        if (run_left > P::kRun) {
          const unsigned to = (round + rank) % kRelayRuns;  // the first block's next run is a round later
          send_away(to_shares + to * P::kRunBytes + P::kBaton, out, to_turnstiles + to * 8 + kReady);
        } else if (state) {
#pragma unroll
          for (int m = 0; m < 4; m++) state[relay_state(m)] = out[m];
        }
      }
      if (Turn == 0 && lane == 0) expect_bytes(told + kReady, 512);
      if constexpr (Turn > 0) {
#pragma unroll
        for (int m = 0; m < 4; m++) h[m] = fmaf(run_decay[m], h[m], run_added[m]);
      }

      // Where a decay has been used, the next chunk's takes its place: so that the special-function unit has
      // something to do all the time.
      times.get(d);
#pragma unroll
      for (int k = 0; k < 8; k++) {
#pragma unroll
        for (int m = 0; m < 4; m++) at(k, m) = h[m] = fmaf(e[k][m], h[m], at(k, m));
        if (k < P::kEarly) decay(e[k], d[k]);
      }
      leave(now, x, gate, Du, y_row, step);
    }
    wait_copy_groups<0>();
  }

 private:
  __device__ __forceinline__ void decay(float (&e)[4], float dt) const {
#pragma unroll
    for (int m = 0; m < 4; m++) e[m] = exp2_approx(dt * A[m]);
  }

  // dt and dt u of two tokens of a channel; dt for the other threads, which will ask for it.
  template <bool First>
  __device__ __forceinline__ Entered enter(int left) {
    Entered in;
    uint32_t delta;
    copies.template take<First>(delta, in.items);
    float dt[2];
#pragma unroll
    for (int j = 0; j < 2; j++) dt[j] = softplus_for<T>(half_of(delta, j, T{}) + bias);
    if (left < 8) {  // a step of 0 changes nothing
#pragma unroll
      for (int j = 0; j < 2; j++)
        if (j >= left) dt[j] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 2; j++) in.dtu[j] = dt[j] * half_of(in.items.u, j, T{});
    times.put(dt);
    __syncwarp();
    copies.ask(nothing);
    return in;
  }

  // dt u B. One product: tokens 2 p + j and 2 p + j + 4 of 8 channels by 8 states. Its k are the threads
  // of a quad, who have a token each, and those again for the lower part of dt u.
  __device__ __forceinline__ void products(const Entered& in, float (&x)[2][2][2][4]) const {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const uint32_t upper = __float_as_uint(in.dtu[j]);
      const uint32_t lower = __float_as_uint(in.dtu[j] - __uint_as_float(upper & 0xffffe000u));
#pragma unroll
      for (int p = 0; p < 2; p++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float B = half_of(in.items.B[half], j, T{}), zero[4] = {};
          mma(x[p][j][half], upper & mine[p], upper & mine[p + 2], lower & mine[p], lower & mine[p + 2],
              B, B, zero);
        }
    }
  }

  // Rows of h as dt u B above, by C of all 8 tokens: a row's own token is one of the columns.
  __device__ __forceinline__ void leave(const Entered& now, const float (&h)[2][2][2][4], const float (&gate)[2],
                                        const float (&Du)[2], uint32_t y_row, uint32_t step) {
    float y[2][2][4];
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float sums[4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const auto of = [&](int r) { return __float_as_uint(h[p][j][half][r]); };
          mma(half ? y[p][j] : sums, of(0), of(2), of(1), of(3), half_of(now.items.C[half], 0, T{}),
              half_of(now.items.C[half], 1, T{}), sums);
        }
      }
    T items[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float low = q % 2 ? y[1][j][j] : y[0][j][j];
      const float high = q % 2 ? y[1][j][2 + j] : y[0][j][2 + j];
      // Cutting bits makes h smaller, by 1 in 2841 in the mean.
      from_float(items[j], fmaf(q < 2 ? low : high, 1.000352f, Du[j]) * gate[j]);
    }
    store_two(y_at, further(y_at, 1, y_row), items, left);
    y_at = further(y_at, step, y_row);
  }
};

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) scan_relay(const __grid_constant__ Scan<typename P::T> s) {
  constexpr int G = P::kGroups;
  extern __shared__ __align__(128) float4 relay_memory[];
  __shared__ RelayGroup groups[G];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, turn = warp / G;
  const unsigned rank = cluster_rank();
  RelayGroup& group = groups[warp % G];
  if (turn == 0 && lane == 0) {
#pragma unroll
    for (int i = 0; i < kRelayRuns; i++) {
      group.told[i].make(32 * P::kOfGroup), group.ready[i].make(1);
      if (rank > 0 || i > 0) expect_bytes(shared_address(&group.ready[i]), 512);
    }
  }
  cluster_arrive();
  wait_for_previous();
  let_next_start();
  const unsigned unit = blockIdx.x / P::kCluster;
  const int64_t slot = s.sequences.slot(unit / s.blocks);
  const auto piece = s.sequences.whole(unit / s.blocks);
  const int tokens = static_cast<int>(piece.end - piece.begin);
  const int64_t first = (static_cast<int64_t>(unit % s.blocks) * G + warp % G) * 8;
  if (tokens <= 0 || first >= s.d) {  // the same for all of a group
    s.sequences.check();
    cluster_wait();
    return;
  }
  const uint32_t memory = shared_address(relay_memory);
  const uint32_t shares = memory + P::kWarps * P::kOwn + warp % G * (kRelayRuns * P::kRunBytes);
  const int start = static_cast<int>(rank) * P::kRun + turn * 8;
  RelayWarp<P> one(s, piece.begin, tokens, first, start, memory + warp * P::kOwn);
  float* state = slot < 0 ? nullptr : s.state + slot * s.state_stride + (first + lane / 4) * s.n;
  if (turn == 0 && rank == 0) {  // what the sequence starts from
    float h[4];
#pragma unroll
    for (int m = 0; m < 4; m++) h[m] = state ? state[relay_state(m)] : 0.0f;
    store_shared(shares + P::kBaton + lane * 16, h);
    __syncwarp();
    if (lane == 0) group.ready[0].arrive();
  }
  s.sequences.check();
  cluster_wait();
  const auto walk = [&]<int Turn>(const auto& next) {
    if (turn == Turn)
      one.template walk<Turn>(rank, shares, group, state);
    else if constexpr (Turn + 1 < P::kOfGroup)
      next.template operator()<Turn + 1>(next);
  };
  walk.template operator()<0>(walk);
}

}  // namespace ss::cuda
