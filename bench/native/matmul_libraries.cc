// matmul (native/cpu/matmul.cc) beside OpenBLAS, BLIS, Eigen and oneDNN, in one process, call by
// call in turn, so that noise of the machine meets all alike. Arguments: numbers of threads. Prints
// JSON lines. (The two variables below let a library's threads sleep before it is another's turn.)
// The project needs none of the libraries; docs/decisions/0002-matmul.md says what came of this.
//
//   apt-get install libopenblas-pthread-dev libblis-openmp-dev libeigen3-dev libdnnl-dev
//   F="-std=c++20 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math"
//   for f in level matmul; do
//     g++ $F -DSS_LEVEL=v4 -march=x86-64-v4 -c native/cpu/$f.cc -o /tmp/$f.o
//   done
//   g++ $F -w -DNDEBUG -march=native -fopenmp -I/usr/include/eigen3 -o /tmp/matmul_libraries \
//     bench/native/matmul_libraries.cc /tmp/level.o /tmp/matmul.o \
//     -lopenblas -lblis -ldnnl -lpthread
//   OPENBLAS_THREAD_TIMEOUT=18 GOMP_SPINCOUNT=20000 /tmp/matmul_libraries 1 2 > \
//     bench/results/<machine>/matmul_libraries.jsonl
//
// With -DLEVEL=v3 here and SS_LEVEL=v3 -march=x86-64-v3 above, another level is measured.
#include <blis.h>
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <sys/mman.h>

#include <Eigen/Dense>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../../native/cpu/stream.h"
#ifndef LEVEL
#define LEVEL v4
#endif

extern "C" void openblas_set_num_threads(int);
namespace ss {

namespace LEVEL {
void matmul(Stream&, In x, In weight, Opt bias, Out y);
}

// The least that serves the kernel: threads that spin a while after a call, as the libraries' do.
struct Stream::Impl {
  std::vector<std::thread> threads;
  std::vector<float*> scratch;
  std::atomic<int64_t> round{0}, finished{0}, next{0};
  std::atomic<bool> stop{false};
  int64_t total = 0, grain = 0;
  Piece piece = nullptr;
  void* ctx = nullptr;

  explicit Impl(int count) : scratch(count) {
    for (auto& s : scratch) s = static_cast<float*>(aligned_alloc(64, size_t{8} << 20));
    for (int worker = 1; worker < count; worker++)
      threads.emplace_back([this, worker] {
        for (int64_t seen = 0; !stop;) {
          for (int spin = 0; round == seen && spin < 20000; spin++) __builtin_ia32_pause();
          round.wait(seen);
          seen = round;
          work(worker);
          finished++;
        }
      });
  }
  ~Impl() {
    stop = true;
    total = 0, round++, round.notify_all();
    for (auto& t : threads) t.join();
    for (auto* s : scratch) free(s);
  }
  void work(int worker) {
    for (int64_t at; (at = next.fetch_add(grain)) < total;)
      piece(ctx, at, std::min(at + grain, total), worker);
  }
};
int Stream::threads() const { return static_cast<int>(impl->scratch.size()); }
void* Stream::scratch(int worker, size_t) { return impl->scratch[worker]; }
void Stream::fail(const char*, ...) { abort(); }
void Stream::parallel_pieces(int64_t n, int64_t grain, Piece piece, void* ctx) {
  const int64_t pieces = threads() == 1 ? 1 : threads() * 4;
  const int64_t share = ((n + pieces - 1) / pieces + grain - 1) / grain * grain;
  impl->total = n, impl->grain = share, impl->piece = piece, impl->ctx = ctx;
  impl->next = impl->finished = 0;
  impl->round++;
  impl->round.notify_all();
  impl->work(0);
  while (impl->finished != threads() - 1) {
  }
}

}  // namespace ss

namespace {

// One thread is timed by what it ran, so that a busy machine does no harm; several by the clock.
clockid_t clock_used = CLOCK_MONOTONIC;
double now() {
  timespec t;
  clock_gettime(clock_used, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}
double seconds(const std::function<void()>& f) {
  const double start = now();
  f();
  return now() - start;
}
double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

typedef float Wide __attribute__((vector_size(64)));

// Multiply-adds from registers alone, and reads of memory alone: what no kernel can exceed.
double fma_gflops(ss::Stream& s) {
  constexpr int64_t kSteps = 4000000;
  std::vector<double> times;
  for (int round = 0; round < 5; round++)
    times.push_back(seconds([&] {
      s.parallel(s.threads(), 1, [](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
          Wide a[16], x = Wide{} + 0.5f;
          for (int j = 0; j < 16; j++) a[j] = Wide{} + static_cast<float>(j);
          for (int64_t step = 0; step < kSteps; step++) {
#pragma GCC unroll 16
            for (auto& v : a) v = v * x + x;
            asm volatile("" : "+v"(x));
          }
          for (auto& v : a) asm volatile("" : : "v"(v));
        }
      });
    }));
  return s.threads() * kSteps * 16. * 16 * 2 / median(times) / 1e9;
}
double read_gbps(ss::Stream& s, const float* data, int64_t count) {
  std::vector<double> times;
  for (int round = 0; round < 7; round++)
    times.push_back(seconds([&] {
      s.parallel(count, 1 << 16, [&](int64_t begin, int64_t end, int) {
        Wide a[4] = {};
        for (int64_t i = begin; i + 64 <= end; i += 64)
          for (int j = 0; j < 4; j++) a[j] += *reinterpret_cast<const Wide*>(data + i + 16 * j);
        for (auto& v : a) asm volatile("" : : "v"(v));
      });
    }));
  return count * 4. / median(times) / 1e9;
}

void print(const char* lib, int64_t m, int64_t n, int64_t k, const char* dtype, int threads,
           double gflops, double gbps) {
  printf("{\"bench\":\"matmul\",\"lib\":\"%s\",\"m\":%ld,\"n\":%ld,\"k\":%ld,\"dtype\":\"%s\","
         "\"threads\":%d,\"gflops\":%.1f,\"gbps\":%.2f}\n",
         lib, m, n, k, dtype, threads, gflops, gbps);
  fflush(stdout);
}

ss::View view(void* data, int64_t rows, int64_t columns, ss::DType dtype) {
  return {data, {rows, columns, 0, 0}, columns, 2, dtype};
}

struct Buffers {
  float *x, *y, *weights;
  int64_t bytes;  // of weights: several copies of W, taken in turn, so that W comes from memory
};

void measure(ss::Stream& s, const Buffers& b, int m, int n, int k, int rounds) {
  struct Entry {
    const char *lib, *dtype;
    int64_t size;
    std::function<void(void* w)> call;
    std::vector<double> times = {};
  };
  const auto own = [&](ss::DType dtype) {
    return [=, &s, &b](void* w) {
      auto x = view(b.x, m, k, ss::DType::f32), y = view(b.y, m, n, ss::DType::f32);
      auto weight = view(w, n, k, dtype);
      ss::LEVEL::matmul(s, ss::In{&x}, ss::In{&weight}, ss::Opt{nullptr}, ss::Out{&y});
    };
  };
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Entry entries[] = {
      {"selective-scan", "f32", 4, own(ss::DType::f32)},
      {"selective-scan", "bf16", 2, own(ss::DType::bf16)},
      {"selective-scan", "f16", 2, own(ss::DType::f16)},
      {"OpenBLAS", "f32", 4,
       [&](void* w) {
         // declared by blis.h, taken from OpenBLAS, which is linked first
         cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, b.x, k,
                     static_cast<float*>(w), k, 0, b.y, n);
       }},
      {"BLIS", "f32", 4,
       [&](void* w) {
         float one = 1, zero = 0;
         bli_sgemm(BLIS_NO_TRANSPOSE, BLIS_TRANSPOSE, m, n, k, &one, b.x, k, 1,
                   static_cast<float*>(w), k, 1, &zero, b.y, n, 1);
       }},
      {"Eigen", "f32", 4,
       [&](void* w) {
         Eigen::Map<Matrix> x(b.x, m, k), y(b.y, m, n), weight(static_cast<float*>(w), n, k);
         y.noalias() = x * weight.transpose();
       }},
      {"oneDNN", "f32", 4,
       [&](void* w) {
         dnnl_sgemm('N', 'T', m, n, k, 1, b.x, k, static_cast<float*>(w), k, 0, b.y, n);
       }},
  };
  int64_t copy = 0;
  for (int round = 0; round < rounds; round++)
    for (auto& e : entries) {
      // The threads of the one before go to sleep, those of this one wake up in an untimed call.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const int64_t size = e.size * n * k, copies = b.bytes / size;
      const auto call = [&] {
        e.call(reinterpret_cast<char*>(b.weights) + copy++ % copies * size);
      };
      if (round == 0 || m <= 8) call();
      e.times.push_back(seconds(call));
    }
  for (auto& e : entries) {
    const double t = median(e.times);
    print(e.lib, m, n, k, e.dtype, s.threads(), 2. * m * n * k / t / 1e9,
          1. * e.size * n * k / t / 1e9);
  }
}

struct Shape {
  int n, k;
};

}  // namespace

int main(int argc, char** argv) {
  const Shape shapes[] = {{3072, 768}, {768, 1536}, {80, 1536}, {1536, 48}, {50280, 768},  // 130m
                          {4096, 1024}, {1024, 2048}, {96, 2048}, {2048, 64}};             // 370m
  Buffers b;
  b.bytes = int64_t{256} << 20;
  const auto floats = [](int64_t bytes) {
    void* p = aligned_alloc(1 << 21, bytes);
    madvise(p, bytes, MADV_HUGEPAGE);
    return static_cast<float*>(p);
  };
  b.x = floats(2048 * 2048 * 4);
  b.y = floats(int64_t{1} << 29);
  b.weights = floats(b.bytes);
  for (int64_t i = 0; i < 2048 * 2048; i++) b.x[i] = (i * 7919 % 1009) / 1009.f - 0.5f;
  for (int64_t i = 0; i < b.bytes / 4; i++) b.weights[i] = (i * 104729 % 2003) / 2003.f - 0.5f;
  memset(b.y, 0, size_t{1} << 29);

  for (int i = 1; i < argc; i++) {
    const int threads = atoi(argv[i]);
    clock_used = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    ss::Stream::Impl impl(threads);
    ss::Stream s{&impl};
    openblas_set_num_threads(threads);
    bli_thread_set_num_threads(threads);
    omp_set_num_threads(threads);
    Eigen::setNbThreads(threads);
    print("peak", 0, 0, 0, "f32", threads, fma_gflops(s), read_gbps(s, b.weights, b.bytes / 4));
    for (const auto& shape : shapes)
      for (int m : {1, 8, 512, 2048}) {
        if (m == 2048 && shape.n > 50000) continue;
        const double flops = 2. * m * shape.n * shape.k;
        measure(s, b, m, shape.n, shape.k, std::clamp(int(2e9 / flops), 5, 31));
      }
  }
}
