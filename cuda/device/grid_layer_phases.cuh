// What the computing warps of grid_layers.cuh do between the two large products, and in which order.
#pragma once
#include "activation.cuh"
#include "grid_layer_rows.cuh"
#include "stochastic.cuh"

namespace ss::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Four quarters' worth of 16 states, or fewer.
__device__ __forceinline__ void open(float (&to)[16], const uint4* from, float) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint4 v = from[i];
    to[4 * i] = __uint_as_float(v.x), to[4 * i + 1] = __uint_as_float(v.y);
    to[4 * i + 2] = __uint_as_float(v.z), to[4 * i + 3] = __uint_as_float(v.w);
  }
}
template <class S>
__device__ __forceinline__ void open(float (&to)[16], const uint4* from, S type) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint4 v = from[i];
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 both = pair_from(word[j], type);
      to[8 * i + 2 * j] = both.x, to[8 * i + 2 * j + 1] = both.y;
    }
  }
}

template <class T, class S, class Size>
struct GridStep : GridRows<T, Size> {
  using Base = GridRows<T, Size>;
  using Base::act_memory, Base::states, Base::wide, Base::act, Base::weights;
  using Base::s, Base::rest, Base::round, Base::thread, Base::lane, Base::warp, Base::block, Base::group;
  using Base::row, Base::q, Base::channel, Base::owner, Base::d, Base::channels, Base::columns, Base::kEights;
  using Base::meet, Base::wait_until_heard, Base::open_place, Base::stage, Base::pieces, Base::join;
  using Base::add_mixed, Base::normalize, Base::load;
  static constexpr int r = Size::r, half = Size::half;

  char *const u_tile = act_memory + Size::u_at, *const xz = act_memory + Size::xz_at;
  float* const dt = reinterpret_cast<float*>(act_memory);
  float* const A = reinterpret_cast<float*>(act_memory + Size::A_at);
  uint32_t states_parity = 0;

  __device__ __forceinline__ T* xz_row(int i) const { return reinterpret_cast<T*>(xz + i * (2 * Size::pitch)); }
  static __device__ __forceinline__ int in_tile(int row, int column) {
    return row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2;
  }

  // Two neighbouring channels of a row, and 8 further on as many again.
  __device__ __forceinline__ void convolve(const float2 (&sum)[kEights]) {
    const bool there = rest.slot[row] >= 0;
#pragma unroll
    for (int j = 0; j < kEights / 2; j++) {
      const int c = 8 * j + 2 * q;
      const uint32_t x = pair_bits(sum[j].x, sum[j].y, T{});
      const uint32_t z = pair_bits(sum[j + kEights / 2].x, sum[j + kEights / 2].y, T{});
      auto* const past = reinterpret_cast<uint32_t*>(rest.past[row] + c * 6);
      const uint32_t a = there ? past[0] : 0, b = there ? past[1] : 0, e = there ? past[2] : 0;
      const float2 now = pair_from(x, T{});
      const float2 first = pair_from(a, T{}), middle = pair_from(b, T{}), last = pair_from(e, T{});
      const float4 v = rest.taps[c], w = rest.taps[c + 1];
      float one = fmaf(v.x, first.x, rest.bias[c]), two = fmaf(w.x, middle.y, rest.bias[c + 1]);
      one = fmaf(v.y, first.y, one), two = fmaf(w.y, last.x, two);
      one = fmaf(v.z, middle.x, one), two = fmaf(w.z, last.y, two);
      one = silu(fmaf(v.w, now.x, one)), two = silu(fmaf(w.w, now.y, two));
      past[0] = __byte_perm(a, b, 0x5432);  // the first one's second, third
      past[1] = __byte_perm(x, e, 0x5410);  // x; the second one's second
      past[2] = __byte_perm(e, x, 0x7632);  // its third, x
      *reinterpret_cast<uint32_t*>(u_tile + in_tile(row, c)) = pair_bits(one, two, T{});
      *reinterpret_cast<uint32_t*>(xz_row(row) + c) = x;
      *reinterpret_cast<uint32_t*>(xz_row(row) + channels + c) = z;
    }
    if (channels % 16 != 0 && thread < kGridRows)
      *reinterpret_cast<uint4*>(u_tile + in_tile(thread, channels)) = uint4{};
  }
  // A comes to where the ring of activations has no part of what is needed until then.
  __device__ __forceinline__ void load_A(const GridLayer<T>& l) {
    if (thread < channels * 4)
      copy_async(A + thread / 4 * Size::A_pitch + thread % 4 * 4, l.A + channel * kLayerStates + thread * 4, true);
    end_copy_group();
  }

  __device__ __forceinline__ void pass_weights() {
    weights.wait();
    weights.release(weights.at.stage);
    weights.next();
  }
  // u's share of dbc, a warpgroup half of the columns.
  __device__ __forceinline__ void share(const GridLayer<T>& l) {
    float c[half / 2] = {};
    const uint32_t a = shared_address(u_tile);
    if (group == 1) pass_weights();
    const uint32_t b = shared_address(weights.wait());
    __syncwarp();
    begin_products();
#pragma unroll
    for (int i = 0; i < Size::units; i++) multiply(c, tile_at(a + 32 * i), tile_at(b + 32 * i), T{});
    end_products();
    write_inputs(l);
    wait_for_products();
    weights.release(weights.at.stage);
    weights.next();
    if (group == 0) pass_weights();
    // To where the states will be, and from there to memory.
    float* const place = reinterpret_cast<float*>(states) + group * kGridRows * half;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int to = warp % 4 * 16 + lane / 4 + 8 * h;
#pragma unroll
      for (int j = 0; j < half / 8; j++)
        *reinterpret_cast<float2*>(place + to * half + (8 * j + 2 * q ^ apart<half>(to))) = {c[4 * j + 2 * h],
                                                                                              c[4 * j + 2 * h + 1]};
    }
    stage();
  }
  // What came of in_proj, to memory.
  __device__ __forceinline__ void write_inputs(const GridLayer<T>& l) const {
    constexpr int kOf = channels / 8;
    pieces(kOf, [&](int i, int piece) {
      const int64_t at = static_cast<int64_t>(i) * d + channel + piece * 8;
      const uint4* from = reinterpret_cast<const uint4*>(xz_row(i)) + piece;
      T* const to = l.xz + at + static_cast<int64_t>(i) * d;
      *reinterpret_cast<uint4*>(to) = from[0];
      *reinterpret_cast<uint4*>(to + d) = from[kOf];
      *reinterpret_cast<uint4*>(l.u + at) = *reinterpret_cast<const uint4*>(u_tile + in_tile(i, piece * 8));
    });
  }
  __device__ __forceinline__ void write_past(const GridLayer<T>& l) const {
    constexpr int kPast = Size::past_bytes / 16;
    pieces(kPast, [&](int i, int piece) {
      const int slot = rest.slot[i];
      if (slot >= 0)
        reinterpret_cast<uint4*>(l.conv_state + (static_cast<int64_t>(slot) * d + channel) * 3)[piece] =
            reinterpret_cast<const uint4*>(rest.past[i])[piece];
    });
  }
  // Half a row of dbc from all blocks' shares: a thread 4 columns of 16 of them, then a warp the 8 sums.
  __device__ __forceinline__ void add_shares(const GridLayer<T>& l) {
    constexpr int kQuads = half / 4, kSums = 8, kEach = kGridBlocks / kSums;
    if (block >= 2 * s.count) return;
    wait_until_heard();
    auto* const place = reinterpret_cast<float4*>(act_memory);
    if (thread < kQuads * kSums) {
      const int of = block / 2, quad = (thread % kQuads * 4 ^ apart<half>(of)) / 4;
      const auto* from = reinterpret_cast<const float4*>(s.shares) +
                         (static_cast<int64_t>(thread / kQuads * kEach * 2 + block % 2) * s.count + of) * kQuads + quad;
      float4 v[kEach];
#pragma unroll
      for (int i = 0; i < kEach; i++) v[i] = __ldcg(from + static_cast<int64_t>(2 * i) * s.count * kQuads);
#pragma unroll
      for (int i = 1; i < kEach; i++) v[0].x += v[i].x, v[0].y += v[i].y, v[0].z += v[i].z, v[0].w += v[i].w;
      place[thread] = v[0];
    }
    shared_is_written();
    meet();
    if (warp != 0) return;
    if (lane < kQuads) {
      float4 sum = place[lane];
#pragma unroll
      for (int i = 1; i < kSums; i++) {
        const float4 more = place[i * kQuads + lane];
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
      }
      const uint2 bits = {pair_bits(sum.x, sum.y, T{}), pair_bits(sum.z, sum.w, T{})};
      const int64_t at = static_cast<int64_t>(block) * half + 4 * lane;  // row block / 2
      *reinterpret_cast<uint2*>(s.to_dbc + at) = bits;
      shared_is_written();
      __syncwarp((1u << kQuads) - 1);
      tell(s.told, kAdded, round);
      *reinterpret_cast<uint2*>(l.dbc + at) = bits;
    }
    __syncwarp();
  }

  // Delta. Both warpgroups make all of it and keep half.
  __device__ __forceinline__ void project_dt(int layer) {
    float c[channels / 2] = {};
    wait_barrier(&rest.dbc_full, layer & 1);
    const uint32_t a = shared_address(act_memory), b = shared_address(weights.wait());
    __syncwarp();
    begin_products();
#pragma unroll
    for (int i = 0; i < r / 16; i++)
      multiply(c, tile_at(a + i / 4 * Size::box + i % 4 * 32), tile_at(b + i / 4 * channels * 128 + i % 4 * 32), T{});
    end_products();
    wait_for_products();
    weights.release(weights.at.stage);
    weights.next();
    // B and C become f32 in their own place, 8 a thread.
    char* const turned = act_memory + r / 64 * Size::box + thread / 4 * 128 + thread % 4 * 32;
    const uint4 halves = *reinterpret_cast<const uint4*>(act_memory + r / 64 * Size::box +
                                                         in_tile(thread / 4, r % 64 + thread % 4 * 8));
    meet();  // the columns that delta was made of have been read
#pragma unroll
    for (int j = 0; j < channels / 8; j++) {
      const int at = 8 * j + 2 * q;
      const float one = group ? c[4 * j + 2] : c[4 * j], two = group ? c[4 * j + 3] : c[4 * j + 1];
      *reinterpret_cast<float2*>(dt + row * Size::dt_pitch + at) = {softplus(rounded_to(one, T{}) + rest.dt_bias[at]),
                                                                    softplus(rounded_to(two, T{}) + rest.dt_bias[at + 1])};
    }
    const uint32_t word[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float2 a = pair_from(word[2 * i], T{}), b = pair_from(word[2 * i + 1], T{});
      *reinterpret_cast<float4*>(turned + 16 * i) = {a.x, a.y, b.x, b.y};
    }
    wait_copy_groups<0>();
    meet();
  }

  // B, and 16 further on C, of a row.
  __device__ __forceinline__ void coefficients(float (&to)[16], int i, int from) const {
    const auto* at = reinterpret_cast<const float4*>(act_memory + r / 64 * Size::box + i * 128) + from / 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float4 v = at[j];
      to[4 * j] = v.x, to[4 * j + 1] = v.y, to[4 * j + 2] = v.z, to[4 * j + 3] = v.w;
    }
  }
  __device__ __forceinline__ void release_states(int place) const {
    shared_is_written();
    __syncwarp();
    if (lane == 0) arrive(&rest.states_free[place]);
  }
  // States, a channel a thread.
  __device__ __forceinline__ void advance(const GridLayer<T>& l) {
    constexpr int kItem = kLayerStates * int{sizeof(S)}, kRow = channels * kItem, kRows = Size::state_bytes / 2 / kRow;
    constexpr int kItems = kRows * channels;
    constexpr bool kFixed = kGridThreads % channels == 0;
    float a[16];
    const auto load_a = [&](int c) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float4 v = *reinterpret_cast<const float4*>(A + c * Size::A_pitch + 4 * i);
        a[4 * i] = v.x, a[4 * i + 1] = v.y, a[4 * i + 2] = v.z, a[4 * i + 3] = v.w;
      }
    };
    if (kFixed) load_a(thread % channels);
#pragma unroll 1
    for (int begin = 0; begin < s.count; begin += 2 * kRows) {
#pragma unroll 1
      for (int chunk = 0; chunk < 2; chunk++) {
        char* const stage = states + chunk * (Size::state_bytes / 2);
        const int first = begin + chunk * kRows;
        // Whole warps of them.
        const int items = s.count - first < kRows ? ((s.count - first) * channels + 31) / 32 * 32 : kItems;
        wait_barrier(&rest.states_full[chunk], states_parity);
#pragma unroll 2
        for (int item = thread; item < items; item += kGridThreads) {
          const int i = first + item / channels, c = item % channels;
          if (!kFixed) load_a(c);
          auto* const own = reinterpret_cast<uint4*>(stage + item * kItem);
          float h[16], B[16], C[16];
          open(h, own, S{});
          if (rest.slot[i] < 0) {
#pragma unroll
            for (int j = 0; j < 16; j++) h[j] = 0.0f;
          }
          coefficients(B, i, 0);
          coefficients(C, i, kLayerStates);
          const T* const own_z = xz_row(i) + channels + c;
          const float now = to_float(*reinterpret_cast<const T*>(u_tile + in_tile(i, c)));
          const float delta = dt[i * Size::dt_pitch + c], scaled = delta * kLog2e, dtu = delta * now;
          float y[2] = {};
#pragma unroll
          for (int j = 0; j < 16; j++) {
            h[j] = fmaf(exp2_approx(scaled * a[j]), h[j], dtu * B[j]);
            y[j % 2] = fmaf(h[j], C[j], y[j % 2]);
          }
          const float sum = y[0] + y[1];
          from_float(reinterpret_cast<T*>(act_memory + Size::y_at)[i * channels + c],
                     fmaf(rest.D[c], now, sum) * silu(to_float(*own_z)));
          if constexpr (sizeof(S) == 4) {
#pragma unroll
            for (int j = 0; j < 4; j++)
              own[j] = {__float_as_uint(h[4 * j]), __float_as_uint(h[4 * j + 1]), __float_as_uint(h[4 * j + 2]),
                        __float_as_uint(h[4 * j + 3])};
          } else {
            const Dice dice = Dice::of_eight(sum, channel + c);
            uint32_t word[8];
#pragma unroll
            for (int j = 0; j < 8; j++) word[j] = round_pair<S>(h[2 * j], h[2 * j + 1], dice.pair(j));
            own[0] = {word[0], word[1], word[2], word[3]};
            own[1] = {word[4], word[5], word[6], word[7]};
          }
        }
        if (begin + 2 * kRows < s.count) release_states(chunk);
      }
      states_parity ^= 1;
    }
  }
  __device__ __forceinline__ void write_gated(const GridLayer<T>& l) {
    constexpr int kOf = channels / 8, kMost = (kGridRows * kOf + kGridThreads - 1) / kGridThreads;
    stage();
    release_states(0), release_states(1);
    meet();
    uint4 v[kMost];
#pragma unroll
    for (int e = 0; e < kMost; e++) {
      const int i = thread + e * kGridThreads;
      if (i < kGridRows * kOf) v[e] = reinterpret_cast<const uint4*>(act_memory + Size::y_at)[i];
    }
    open_place();
#pragma unroll
    for (int e = 0; e < kMost; e++) {
      const int i = thread + e * kGridThreads;
      if (i < s.count * kOf)
        *reinterpret_cast<uint4*>(l.gated + static_cast<int64_t>(i / kOf) * d + channel + i % kOf * 8) = v[e];
    }
    write_past(l);
  }
  __device__ __forceinline__ void write_mixed(const float2 (&sum)[kEights]) {
    float* const place = reinterpret_cast<float*>(act_memory + Size::u_at);
#pragma unroll
    for (int j = 0; j < kEights; j++)
      *reinterpret_cast<float2*>(place + row * columns + (8 * j + 2 * q ^ apart<columns>(row))) = sum[j];
    stage();
    open_place();
  }

  __device__ __forceinline__ void run(int layer) {
    const GridLayer<T>& l = s.layer[layer];
    load(l);
    if (owner) {
      float2 norm[Size::pairs];
#pragma unroll
      for (int i = 0; i < Size::pairs; i++)
        norm[i] = *reinterpret_cast<const float2*>(l.norm + 2 * (thread + i * kGridThreads));
      if (layer > 0) add_mixed(s.layer[layer - 1]);
      round++;
      normalize(l, norm);
    } else {
      round++;
    }
    float c[columns / 2];
    float2 sum[kEights];
    this->template multiply_stages<Size::in_stages>(wide, c);
    wait_copy_groups<0>();
    meet();
    join(c, sum);
    convolve(sum);
    shared_is_written();
    meet();
    load_A(l);
    open_place();
    share(l);
    add_shares(l);
    project_dt(layer);
    advance(l);
    if (layer + 1 == s.layers) let_next_start();
    write_gated(l);
    this->template multiply_stages<Size::out_stages>(act, c);
    meet();
    join(c, sum);
    write_mixed(sum);
  }
  __device__ __forceinline__ void end() {
    if (owner) add_mixed(s.layer[s.layers - 1]);
  }
};

#endif

}  // namespace ss::cuda
