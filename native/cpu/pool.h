// The threads that CPU kernels are spread over: one pool a process, shared by every queue.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ss {

class Pool {
 public:
  using Piece = void (*)(void* context, int64_t begin, int64_t end, int worker);
  static constexpr int kMaxThreads = 256;

  static Pool& instance();

  // Runs `piece` over [0, n) on the caller (worker 0) and, if no other queue has them, the workers.
  void run(int64_t n, int64_t grain, Piece piece, void* context);
  int threads() const { return threads_.load(std::memory_order_relaxed); }
  void set_threads(int count);  // the caller included; at least 1
  static int default_threads();

 private:
  Pool();
  void work(int worker, uint64_t seen);
  void take_pieces(int worker);
  void start_workers(int count);
  void stop_workers();

  std::mutex region_;  // one parallel region at a time; a queue that finds it taken runs alone
  std::vector<std::thread> workers_;
  std::atomic<int> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> short_of_memory_{false};  // some piece of this region could not be done

  // epoch << 32 | open << 31 | workers inside. Late wakers see a closed gate and stay out, so that
  // a short region never waits for a sleeping worker.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> bell_{0};  // what sleeping workers wait on
  alignas(64) std::atomic<int64_t> next_{0};
  int64_t n_ = 0, step_ = 0;
  Piece piece_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace ss
