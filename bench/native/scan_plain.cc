// The selective_scan kernel on one core against the plain loop below, compiled with the same flags,
// in one process. One JSON line a shape: medians of interleaved runs, the ratio, compulsory traffic
// (u, delta, z, B, C read and y written once), exponentials a second, and their share of what the
// step's arithmetic, exp2_mul_add, reaches alone on a buffer in cache. From the repository's root:
//   F="-std=c++20 -O3 -march=x86-64-v4 -DSS_LEVEL=v4 -ffp-contract=fast -fno-math-errno"
//   F="$F -fno-trapping-math -I."; K="native/cpu/level.cc native/cpu/selective_scan.cc"
//   g++ $F bench/native/scan_plain.cc $K -o build/scan_plain && build/scan_plain
// with v3 for v4 where there is no AVX-512. An argument runs that many rounds instead of 5.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <random>
#include <vector>

#include "native/cpu/vmath.h"

using ss::DType, ss::In, ss::Opt, ss::OptInOut, ss::Out, ss::View;

// Huge pages, as the CPU device has them.
template <class T>
struct HugePages {
  using value_type = T;
  T* allocate(size_t n) {
    const size_t page = 2 << 20, bytes = (n * sizeof(T) + page - 1) / page * page;
    void* p = aligned_alloc(page, bytes);
    madvise(p, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { free(p); }
  bool operator==(const HugePages&) const { return true; }
};
using Floats = std::vector<float, HugePages<float>>;

namespace ss {
int Stream::threads() const { return 1; }
void* Stream::scratch(int, size_t bytes) {
  static Floats memory;
  memory.resize(bytes / sizeof(float) + 1);
  return memory.data();
}
void Stream::fail(const char* format, ...) {
  fprintf(stderr, "%s\n", format);
  exit(1);
}
void Stream::parallel_pieces(int64_t n, int64_t, Piece piece, void* context) {
  piece(context, 0, n, 0);
}
namespace SS_LEVEL {
void selective_scan(Stream&, In, In, In, In, In, Opt, Opt, Opt, In, Opt, OptInOut, bool, Out);
}
}  // namespace ss

namespace {

// What one would write first: h[n] of a channel in a small array, through all of its time.
void plain_scan(int64_t batch, int64_t d, int64_t length, int64_t n, const float* u,
                const float* delta, const float* A, const float* B, const float* C, const float* D,
                const float* z, const float* bias, float* y) {
  for (int64_t b = 0; b < batch; b++)
    for (int64_t c = 0; c < d; c++) {
      float h[256] = {};
      for (int64_t t = b * length; t < (b + 1) * length; t++) {
        float dt = delta[t * d + c] + bias[c];
        if (dt <= 20) dt = log1pf(expf(dt));
        const float dtu = dt * u[t * d + c];
        float sum = 0;
        for (int64_t j = 0; j < n; j++) {
          h[j] = expf(dt * A[c * n + j]) * h[j] + dtu * B[t * n + j];
          sum += h[j] * C[t * n + j];
        }
        const float gate = z[t * d + c];
        y[t * d + c] = (sum + D[c] * u[t * d + c]) * gate / (1 + expf(-gate));
      }
    }
}

double now() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);  // the machine may be busy with others
  return t.tv_sec + t.tv_nsec * 1e-9;
}
template <class F>
double seconds(F&& f) {
  const double start = now();
  f();
  return now() - start;
}
double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

// Seconds for one exponential with its h and b, 256 vectors of them at a time.
double step_seconds() {
  using namespace ss::SS_LEVEL;
  static Floats x(256 * kLanes, -0.3f);
  constexpr int kRounds = 4000;
  static const Vec one = splat(1), zero = splat(0);
  const double spent = seconds([] {
    for (int r = 0; r < kRounds; r++) {
#pragma GCC unroll 8
      for (int i = 0; i < 256; i++) {
        float* at = &x[i * kLanes];
        store(at, exp2_mul_add(load(at), one, zero));
      }
      asm volatile("" ::: "memory");
    }
  });
  return spent / (double(kRounds) * x.size());
}

View view(Floats& data, std::initializer_list<int64_t> shape) {
  View v{data.data(), {}, 1, int32_t(shape.size()), DType::f32};
  std::copy(shape.begin(), shape.end(), v.shape);
  for (int i = 1; i < v.rank; i++) v.stride *= v.shape[i];
  return v;
}

void measure(int64_t batch, int64_t d, int64_t length, int64_t n, int rounds) {
  std::mt19937 random(1);
  const auto normal = [&](int64_t size, float scale, float mean = 0) {
    std::normal_distribution<float> distribution(mean, scale);
    Floats x(size);
    for (float& v : x) v = distribution(random);
    return x;
  };
  const int64_t t = batch * length;
  Floats u = normal(t * d, 1), delta = normal(t * d, 1), z = normal(t * d, 1);
  Floats A(d * n), B = normal(t * n, 1), C = normal(t * n, 1), D = normal(d, 1);
  Floats bias = normal(d, 1, -4), y(t * d), plain_y(t * d);
  for (int64_t i = 0; i < d * n; i++) A[i] = -float(i % n + 1);
  std::vector<int32_t> starts(batch + 1);
  for (int64_t b = 0; b <= batch; b++) starts[b] = int32_t(b * length);

  const View vu = view(u, {t, d}), vdelta = view(delta, {t, d}), vz = view(z, {t, d});
  const View vA = view(A, {d, n}), vB = view(B, {t, 1, n}), vC = view(C, {t, 1, n});
  const View vD = view(D, {d}), vbias = view(bias, {d}), vy = view(y, {t, d});
  const View offsets{starts.data(), {batch + 1}, 1, 1, DType::i32};
  std::vector<double> fused, plain, peak;
  for (int r = 0; r < rounds; r++) {
    ss::Stream stream{};
    fused.push_back(seconds([&] {
      ss::SS_LEVEL::selective_scan(stream, In{&vu}, In{&vdelta}, In{&vA}, In{&vB}, In{&vC},
                                   Opt{&vD}, Opt{&vz}, Opt{&vbias}, In{&offsets}, Opt{nullptr},
                                   OptInOut{nullptr}, true, Out{&vy});
    }));
    plain.push_back(seconds([&] {
      plain_scan(batch, d, length, n, u.data(), delta.data(), A.data(), B.data(), C.data(),
                 D.data(), z.data(), bias.data(), plain_y.data());
    }));
    peak.push_back(step_seconds());
  }
  float worst = 0, largest = 0;
  for (int64_t i = 0; i < t * d; i++) {
    worst = std::max(worst, fabsf(y[i] - plain_y[i]));
    largest = std::max(largest, fabsf(plain_y[i]));
  }
  const double s = median(fused), exps = double(t) * d * n;
  const double bytes = double(t) * (4 * d + 2 * n) * sizeof(float);
  printf("{\"bench\":\"scan_plain\",\"lanes\":%d,\"batch\":%d,\"dim\":%d,\"length\":%d,"
         "\"state\":%d,\"ms\":%.2f,\"plain_ms\":%.2f,\"ratio\":%.2f,\"gb_per_s\":%.2f,"
         "\"gexp_per_s\":%.2f,\"share_of_peak\":%.3f,\"difference\":%.1e}\n",
         ss::SS_LEVEL::kLanes, int(batch), int(d), int(length), int(n), s * 1e3,
         median(plain) * 1e3, median(plain) / s, bytes / s * 1e-9, exps / s * 1e-9,
         median(peak) * exps / s, worst / largest);
  fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(1, atoi(argv[1])) : 5;
  measure(1, 1536, 2048, 16, rounds);
  measure(8, 1536, 512, 16, rounds);
  measure(1, 2048, 2048, 64, rounds);
}
