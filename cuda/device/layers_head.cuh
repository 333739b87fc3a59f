// What ends a step, behind its layers in the same launch: the norm of the residual, which every block
// makes, and the product with the head, whose rows come through the ring like the layers' weights and
// are on their way during the last layers. The bits are those of add_rms_norm, or accumulate and
// layer_norm, and matmul: the same sums in the same order.
#pragma once
#include "mamba_layer_phases.cuh"
#include "mma.cuh"
#include "reduce.cuh"

namespace ss::cuda {

constexpr int kHeadPiece = 64;  // columns that a warp takes together, as in matmul_stream.cuh

// Groups of kTileRows rows, dealt out to the blocks in turn: fill(from, rows, bytes) for each tile, lane i
// giving where row i begins.
template <class Size, class T, class Fill>
__device__ __forceinline__ void fill_head(const Head<T>& head, Fill&& fill) {
  const int lane = threadIdx.x % 32;
  for (int first = blockIdx.x * kTileRows; first < head.rows; first += kLayerBlocks * kTileRows) {
    const int rows = head.rows - first < kTileRows ? head.rows - first : kTileRows;
    for (int at = 0; at < Size::m; at += Size::columns)
      fill(head.weight + int64_t{first + lane} * Size::m + at, rows, 2 * Size::columns);
  }
}

// By the threads that compute; b is what they hold, after the last layer.
template <class Size, class B, class T>
__device__ __forceinline__ void run_head(B& b, const Head<T>& head) {
  constexpr int m = Size::m, kPack = 4, kOfPart = kPack * kLayerThreads;
  constexpr int kParts = (m + kOfPart - 1) / kOfPart, kChunk = Size::columns / kHeadPiece;
  static_assert(m % kPack == 0 && Size::columns % kHeadPiece == 0 && m % Size::columns == 0);
  auto& shared = b.shared;
  for (int i = b.thread * 4; i < m; i += kLayerThreads * 4) copy_async(shared.norm + i, head.norm + i, true);
  end_copy_group();
  b.round++;
  b.add_mixed();

  // The residual, in the order of its columns.
  auto* row = reinterpret_cast<float*>(shared.act);
#pragma unroll
  for (int i = 0; i < B::kSums; i++)
#pragma unroll
    for (int j = 0; j < 6; j++) {
      const int at = b.sum_begin(i) + j;
      if (at >= b.sum_end(i)) continue;
      row[at] = b.sum[i][j];
      if ((b.thread + i * kLayerThreads) / Size::mixed_words == b.block) head.sum[at] = b.sum[i][j];
    }
  wait_copy_groups<0>();
  sync_layer();
  float4 v[kParts];
#pragma unroll
  for (int part = 0; part < kParts; part++) {
    const int at = part * kOfPart + b.thread * kPack;
    v[part] = at < m ? *reinterpret_cast<const float4*>(row + at) : float4{};
  }
  const auto total = [&](auto of) {
    float sum = 0;
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      if (part * kOfPart + b.thread * kPack >= m) break;
      sum = of(of(of(of(sum, v[part].x), v[part].y), v[part].z), v[part].w);
    }
    sum = warp_sum(sum);
    sync_layer();  // the last ones have been read
    if (b.lane == 0) shared.squares[b.warp] = sum;
    sync_layer();
    return warp_sum(b.lane < kLayerWarps ? shared.squares[b.lane] : 0.0f) / static_cast<float>(m);
  };
  const float mean = head.centred ? total([](float sum, float x) { return sum + x; }) : 0.0f;
  const float squares = total([&](float sum, float x) { return fmaf(x - mean, x - mean, sum); });
  const float scale = head.centred ? 1.0f / sqrtf(squares + head.eps) : rsqrtf(squares + head.eps);
#pragma unroll
  for (int part = 0; part < kParts; part++) {
    const int at = part * kOfPart + b.thread * kPack;
    if (at >= m) break;
    const float4 w = *reinterpret_cast<const float4*>(shared.norm + at);
    float4 y{v[part].x * (scale * w.x), v[part].y * (scale * w.y), v[part].z * (scale * w.z),
             v[part].w * (scale * w.w)};
    if (head.centred) {
      const float4 bias = head.norm_bias ? *reinterpret_cast<const float4*>(head.norm_bias + at) : float4{};
      y = {fmaf((v[part].x - mean) * scale, w.x, bias.x), fmaf((v[part].y - mean) * scale, w.y, bias.y),
           fmaf((v[part].z - mean) * scale, w.z, bias.z), fmaf((v[part].w - mean) * scale, w.w, bias.w)};
    }
    const uint2 halves{pair_bits(y.x, y.y, T{}), pair_bits(y.z, y.w, T{})};
    *reinterpret_cast<uint2*>(shared.act + at / 2) = halves;
    if (b.block == 0) *reinterpret_cast<uint2*>(head.normed + at) = halves;
  }
  sync_layer();

  const int g = b.lane / 4, q = b.lane % 4;
  const char* act = reinterpret_cast<const char*>(shared.act) + q * 16;
  int turn = 0;
#pragma unroll 1
  for (int first = b.block * kTileRows; first < head.rows; first += kLayerBlocks * kTileRows, turn ^= 1) {
    float c[4] = {};
#pragma unroll 1
    for (int before = 0; before < m / kHeadPiece; before += kChunk) {
      b.ring.wait();
      const char* tile = b.ring.tile() + g * b.ring.pitch + q * 16;
      const int own = (b.warp - before % kLayerWarps + kLayerWarps) % kLayerWarps;
#pragma unroll
      for (int i = 0; i < (kChunk + kLayerWarps - 1) / kLayerWarps; i++) {
        const int piece = own + i * kLayerWarps;
        if (piece >= kChunk) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int at = (piece * kHeadPiece + half * 32) * 2;
          uint4 x{};
          if (g == 0) x = *reinterpret_cast<const uint4*>(act + before * kHeadPiece * 2 + at);
          const uint4 w = *reinterpret_cast<const uint4*>(tile + at);
          mma(c, x.x, 0, x.y, 0, w.x, w.y, T{});
          mma(c, x.z, 0, x.w, 0, w.z, w.w, T{});
        }
      }
      b.ring.give_back();
    }
    // By turns: one barrier a group.
    if (g == 0) *reinterpret_cast<float2*>(&shared.sums[b.warp][turn * 8 + 2 * q]) = {c[0], c[1]};
    sync_layer();
    const int column = first + b.thread;
    if (b.thread < kTileRows && column < head.rows) {
      float sum = shared.sums[0][turn * 8 + b.thread];
#pragma unroll
      for (int warp = 1; warp < kLayerWarps; warp++) sum += shared.sums[warp][turn * 8 + b.thread];
      head.logits[column] = head.bias ? sum + head.bias[column] : sum;
    }
  }
}

}  // namespace ss::cuda
