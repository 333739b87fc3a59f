// Draws one token a row: repetition penalty, temperature, top-k, top-p, min-p, in this order, each
// on what the one before has left. Greedy where the temperature is 0. The random number of a row
// comes from its own seed and position alone, so that a row's tokens do not depend on the batch.
//
// One block a row. The row is read once into shared memory where it fits (53,000 tokens on Hopper),
// else again for each pass. Nothing sorts the vocabulary: a histogram of the weights bounds what
// the filters can leave; up to kSorted candidates are sorted, more are searched for by bisection.
//
// Answers are those of the CPU kernel, ties by the smaller id included. What may differ is the last
// bit of exp, and the last bits of sums in double, which the CPU takes in order of the ids: another
// token follows only where a random number falls within that distance of a boundary.
#include "device/fault.cuh"
#include "device/philox.cuh"
#include "device/pick.cuh"
#include "device/reduce.cuh"
#include "device/scan_block.cuh"
#include "stream.h"

namespace ss::cuda {
namespace {

constexpr int kThreads = 1024, kSorted = 2048, kBins = 1024;
constexpr int kDigit = 20;  // bits of a weight below its bin; weights of at most 1 have kBins

struct Rows {
  const float* logits;
  int64_t stride;
  int v;
  const float *temperature, *top_p, *min_p, *penalty;
  const int32_t *top_k, *seed;
  int64_t seed_stride;
  const int32_t *stop, *quiet;  // null: no ids to hold back
  int stops;
  int32_t* seen;  // one bit a token id that the row has seen, or null
  int64_t seen_stride;
  int32_t *position, *token;
  float* logprob;
  Fault* fault;
  bool fits;  // a row, in shared memory
};

// The logits of one row as the penalty and the held-back ids leave them, and as weights.
struct Row {
  const float* raw;
  int v;
  const int32_t* marks;
  float penalty;
  const int32_t* stop;
  int stops;
  const float* kept;  // what processed() gave, or null
  float best, scale;

  __device__ float processed(int i) const {
    float x = raw[i];
    if (marks && (static_cast<uint32_t>(marks[i >> 5]) >> (i & 31) & 1u))
      x = x > 0 ? x / penalty : x * penalty;
    for (int j = 0; j < stops; j++)
      if (stop[j] == i) x = -INFINITY;
    return x;
  }
  __device__ float at(int i) const { return kept ? kept[i] : processed(i); }
  __device__ float weight(int i) const { return expf((at(i) - best) * scale); }
};

struct Best {
  float x;
  int id;
};
__device__ Best better(Best a, Best b) { return b.x > a.x || (b.x == a.x && b.id < a.id) ? b : a; }
__device__ Best warp_best(Best best) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2)
    best = better(best, {__shfl_xor_sync(0xffffffffu, best.x, lane),
                         __shfl_xor_sync(0xffffffffu, best.id, lane)});
  return best;
}
__device__ Best block_best(Best best) {
  __shared__ Best of_warp[32];
  best = warp_best(best);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  return warp_best(of_warp[threadIdx.x % 32]);  // kThreads is 32 warps
}

// Descending; n is a power of two.
__device__ void sort(uint64_t* keys, int n) {
  for (int size = 2; size <= n; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int p = threadIdx.x; p < n / 2; p += kThreads) {
        const int i = 2 * p - (p & (step - 1));
        const uint64_t a = keys[i], b = keys[i + step];
        if ((i & size) == 0 ? a < b : a > b) {
          keys[i] = b;
          keys[i + step] = a;
        }
      }
    }
  __syncthreads();
}

struct Filters {
  int most;             // candidates at most: top-k, or all whose weight is not 0
  bool all;             // most is all of them
  double total, top_p;  // total: of all weights
  float min_p;
  double random;
};

// Weights of at least 2^kDigit times this bin hold all that the filters can leave.
__device__ uint32_t lowest_bin(const Row& row, const Filters& f, uint32_t* bins) {
  __shared__ uint32_t lowest;
  __syncthreads();
  bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) lowest = 0;
  __syncthreads();
  // Of all weights, parts of the total, rounded down: whole numbers, in any order the same sum.
  const float part = static_cast<float>(0x1p31 * (1 - 1e-6) / f.total);
  for (int i = threadIdx.x; i < row.v; i += kThreads) {
    const float w = row.weight(i);
    const uint32_t amount = f.all ? static_cast<uint32_t>(w * part) : w > 0;
    if (amount) atomicAdd(&bins[__float_as_uint(w) >> kDigit], amount);
  }
  __syncthreads();
  const uint64_t goal =
      f.all ? static_cast<uint64_t>(ceil(f.top_p * 0x1p31)) : static_cast<uint64_t>(f.most);
  const uint32_t bin = kBins - 1 - threadIdx.x, own = bins[bin], through = block_running_sum(own);
  if (through >= goal && through - own < goal) lowest = bin;
  __syncthreads();
  return lowest;
}

// As the CPU kernel's heap: candidates by falling weight, of which the filters leave the first few.
__device__ int draw_sorted(const uint64_t* keys, int n, const Filters& f) {
  __shared__ double at_end;
  const int most = f.most < n ? f.most : n, i = 2 * threadIdx.x;
  const auto weight = [&](int j) {
    return j < n ? __uint_as_float(static_cast<uint32_t>(keys[j] >> 32)) : 0.0f;
  };
  const float w[2] = {weight(i), weight(i + 1)};
  const double pair = static_cast<double>(w[0]) + w[1], before = block_running_sum(pair) - pair;
  const double through[2] = {before + w[0], before + pair};

  if (i <= most - 1 && most - 1 <= i + 1) at_end = through[most - 1 - i];
  __syncthreads();
  const double total = f.all ? f.total : at_end;
  int keep = 0;
  for (int e = 0; e < 2; e++) {
    const double kept = through[e] - w[e];
    keep += i + e < most &&
            (i + e == 0 || !(w[e] < f.min_p || (f.top_p < 1 && kept >= f.top_p * total)));
  }
  const int count = block_sum(keep);
  if (i <= count - 1 && count - 1 <= i + 1) at_end = through[count - 1 - i];
  __syncthreads();
  const double point = f.random * at_end;
  int passed = 0;
  for (int e = 0; e < 2; e++) passed += i + e < count - 1 && through[e] <= point;
  return static_cast<int>(~static_cast<uint32_t>(keys[block_sum(passed)]));
}

// The same where the candidates are too many to sort. Bits of positive floats are in their order.
struct Search {
  const Row row;  // a copy: the caller's stays in registers

  struct Above {
    double mass;
    int count;
  };
  // Of the weights whose bits are at least `bits`, which is not 0.
  __device__ Above above(uint32_t bits) const {
    Above mine{0, 0};
    for (int i = threadIdx.x; i < row.v; i += kThreads) {
      const float w = row.weight(i);
      if (__float_as_uint(w) < bits) continue;
      mine.mass += w;
      mine.count++;
    }
    return {block_sum(mine.mass), block_sum(mine.count)};
  }
  // The largest bits above which enough lies; 0 where there are none.
  template <class Enough>
  __device__ uint32_t highest(Enough enough) const {
    uint32_t bits = 0;
    for (uint32_t bit = 1u << 29; bit > 0; bit /= 2)
      if (enough(above(bits | bit))) bits |= bit;
    return bits;
  }

  __device__ __noinline__ int draw(const Filters& f) const {
    // What is left: all weights above `lowest`, and the first `ties` of those that equal it.
    uint32_t lowest = 1;
    double ties = row.v, total = f.total;
    if (!f.all) {
      lowest = highest([&](Above a) { return a.count >= f.most; });
      const Above rest = above(lowest + 1);
      ties = f.most - rest.count;
      total = rest.mass + ties * __uint_as_float(lowest);
    }
    if (f.top_p < 1) {
      const double goal = f.top_p * total;
      const uint32_t bits = highest([&](Above a) { return a.mass >= goal; });
      if (bits >= lowest) {
        const double needed =
            fmax(1.0, ceil((goal - above(bits + 1).mass) / __uint_as_float(bits)));
        ties = bits > lowest ? needed : fmin(ties, needed);
        lowest = bits;
      }
    }
    if (__float_as_uint(f.min_p) > lowest) {
      lowest = __float_as_uint(f.min_p);
      ties = row.v;
    }
    Above rest = above(lowest + 1);
    ties = fmin(ties, static_cast<double>(above(lowest).count - rest.count));
    const double point = f.random * (rest.mass + ties * __uint_as_float(lowest));
    if (point < rest.mass) {
      lowest = highest([&](Above a) { return a.mass > point; });
      rest = above(lowest + 1);
      ties = above(lowest).count - rest.count;
    }
    const double which = fmin(floor((point - rest.mass) / __uint_as_float(lowest)), ties - 1);
    return pick(
        row.v, [&](int i) { return __float_as_uint(row.weight(i)) == lowest ? 1.0 : 0.0; },
        [&](double) { return which + 0.5; });
  }
};

__device__ int draw_filtered(const Row& row, const Filters& f, uint64_t* keys) {
  __shared__ int found;
  const uint32_t bin = lowest_bin(row, f, reinterpret_cast<uint32_t*>(keys));
  const uint32_t low = bin > 0 ? bin << kDigit : 1;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < row.v; i += kThreads) {
    const uint32_t bits = __float_as_uint(row.weight(i));
    if (bits < low) continue;
    const int place = atomicAdd(&found, 1);
    if (place < kSorted) keys[place] = uint64_t{bits} << 32 | ~static_cast<uint32_t>(i);
  }
  __syncthreads();
  const int n = found;
  if (n > kSorted) return Search{row}.draw(f);
  int padded = 2;
  while (padded < n) padded *= 2;
  for (int i = n + threadIdx.x; i < padded; i += kThreads) keys[i] = 0;
  sort(keys, padded);
  return draw_sorted(keys, n, f);
}

__global__ void __launch_bounds__(kThreads, 1) draw_rows(const Rows rows) {
  extern __shared__ __align__(16) char memory[];
  uint64_t* keys = reinterpret_cast<uint64_t*>(memory);
  float* kept = reinterpret_cast<float*>(keys + kSorted);
  const int64_t b = blockIdx.x;
  const int v = rows.v;
  const int32_t at = rows.position[b];
  int32_t* marks = rows.seen ? rows.seen + b * rows.seen_stride : nullptr;
  const float penalty = rows.penalty[b];
  const bool quiet = rows.quiet && at < rows.quiet[b];
  Row row{rows.logits + b * rows.stride,
          v,
          penalty == 1 ? nullptr : marks,
          penalty,
          rows.stop,
          quiet ? rows.stops : 0,
          nullptr,
          0,
          1};

  // NaN is no candidate; the sum below shows that it is there.
  Best raw{-INFINITY, INT32_MAX}, best = raw;
  for (int i = threadIdx.x; i < v; i += kThreads) {
    const float x = row.processed(i);
    if (rows.fits) kept[i] = x;
    raw = better(raw, {row.raw[i], i});
    best = better(best, {x, i});
  }
  const float largest = block_best(raw).x;
  best = block_best(best);
  if (best.id == INT32_MAX) best.id = v - 1;
  if (rows.fits) row.kept = kept;  // block_best has waited for it

  const float t = rows.temperature[b];
  row.best = best.x;
  row.scale = t > 0 ? 1 / t : 1;
  double all = 0, total = 0;
  int positive = 0;
  for (int i = threadIdx.x; i < v; i += kThreads) {
    all += expf(row.raw[i] - largest);
    if (!(t > 0)) continue;
    const float w = row.weight(i);
    total += w;
    positive += w > 0;
  }
  all = largest + log(block_sum(all));

  int chosen = best.id;
  if (!isfinite(all) || !isfinite(best.x)) {
    if (threadIdx.x == 0) rows.fault->report(b, 0, 0);
  } else if (t > 0) {
    const auto* key = reinterpret_cast<const uint32_t*>(rows.seed + b * rows.seed_stride);
    const double random = uniform(key[0], key[1], static_cast<uint32_t>(at));
    const int32_t k = rows.top_k[b];
    const float p = rows.top_p[b], least = rows.min_p[b];
    total = block_sum(total);
    positive = block_sum(positive);
    const bool all_of_them = !(k > 0 && k < positive);
    if (k > 0 || p < 1)
      chosen = draw_filtered(
          row, {all_of_them ? positive : k, all_of_them, total, p, least, random}, keys);
    else
      chosen = pick(
          v,
          [&](int i) {
            const float w = row.weight(i);
            return static_cast<double>(w < least ? 0 : w);
          },
          [&](double sum) { return random * sum; });
  }
  if (threadIdx.x != 0) return;
  rows.logprob[b] = static_cast<float>(row.raw[chosen] - all);
  rows.token[b] = chosen;
  rows.position[b] = at + 1;
  if (marks) marks[chosen >> 5] |= static_cast<int32_t>(1u << (chosen & 31));
}

}  // namespace

void sample(Stream& s, In logits, In temperature, In top_k, In top_p, In min_p, In penalty, In seed,
            Opt stop, Opt quiet, OptInOut seen, InOut position, InOut token, InOut logprob) {
  const int64_t b = logits.size(0), v = logits.size(1);  // ids are i32, and so is v
  if (b == 0 || v == 0) return;
  constexpr int kStatic = 4096;  // more than the kernel's other shared memory
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int64_t keys = kSorted * int64_t{sizeof(uint64_t)}, row = v * int64_t{sizeof(float)};
  const bool fits = keys + row + kStatic <= most, holds = stop && quiet;
  const int bytes = static_cast<int>(fits ? keys + row : keys);
  cudaFuncSetAttribute(draw_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  draw_rows<<<static_cast<unsigned>(b), kThreads, bytes, s.handle>>>(
      {logits.data<float>(),
       logits.stride(),
       static_cast<int>(v),
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
       fits});
}
KERNEL(sample)

}  // namespace ss::cuda
