#include "pool.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <new>
#include <set>
#include <string>
#include <system_error>

namespace ss {
namespace {

constexpr uint64_t kOpen = 1ull << 31;
constexpr uint64_t kCount = kOpen - 1;
constexpr int kMaxThreads = Pool::kMaxThreads;
// A decode step is a chain of short regions: a worker that has just worked looks out for the next
// one for some tens of microseconds before it sleeps. Idle processes use no time at all.
constexpr int kSpins = 1000;
constexpr int64_t kPiecesPerThread = 4;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Processors that a container's quota allows, or a large number.
int quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string most;
  double period = 0;
  if (!(file >> most >> period) || most == "max" || period <= 0) return kMaxThreads;
  return std::max(1, static_cast<int>(std::atof(most.c_str()) / period));
}

// Cores rather than hardware threads: two threads on one core share its vector units.
int cores() {
  std::set<std::string> siblings;
  for (int cpu = 0; cpu < 4096; cpu++) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string list;
    if (!std::getline(file, list)) break;
    siblings.insert(list);
  }
  return siblings.empty() ? kMaxThreads : static_cast<int>(siblings.size());
}

}  // namespace

int Pool::default_threads() {
  if (const char* wanted = std::getenv("SELECTIVE_SCAN_THREADS"))
    if (const int n = std::atoi(wanted); n >= 1) return std::min(n, kMaxThreads);
  const int allowed = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::min({allowed, cores(), quota(), kMaxThreads});
}

// Never destroyed: at exit its threads sleep, and nothing may wait for them.
Pool& Pool::instance() {
  static Pool* pool = new Pool;
  return *pool;
}

Pool::Pool() : threads_(default_threads()) {}

void Pool::start_workers(int count) {
  // The epoch they have seen is fixed here: a thread that starts late must still take part.
  const uint64_t seen = gate_.load() >> 32;
  try {
    for (int worker = static_cast<int>(workers_.size()) + 1; worker <= count; worker++)
      workers_.emplace_back([this, worker, seen] { work(worker, seen); });
  } catch (const std::system_error&) {
    // The system has no more threads for us: those that there are do the work.
  }
}

void Pool::stop_workers() {
  stopping_ = true;
  bell_.fetch_add(1);
  bell_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
  stopping_ = false;
}

void Pool::set_threads(int count) {
  std::lock_guard lock(region_);
  stop_workers();
  threads_ = std::clamp(count, 1, kMaxThreads);
}

void Pool::take_pieces(int worker) try {
  for (;;) {
    const int64_t begin = next_.fetch_add(step_, std::memory_order_relaxed);
    if (begin >= n_) return;
    piece_(context_, begin, std::min(begin + step_, n_), worker);
  }
} catch (const std::bad_alloc&) {
  short_of_memory_.store(true, std::memory_order_relaxed);
}

void Pool::work(int worker, uint64_t seen) {
  for (;;) {
    uint64_t gate = 0;
    for (int spins = 0;; spins++) {
      const uint32_t bell = bell_.load(std::memory_order_acquire);
      gate = gate_.load(std::memory_order_acquire);
      if (gate >> 32 != seen && (gate & kOpen)) break;
      if (spins >= kSpins) {
        if (stopping_) return;
        bell_.wait(bell, std::memory_order_acquire);
        if (stopping_) return;
      }
      pause();
    }
    seen = gate >> 32;
    if (!gate_.compare_exchange_strong(gate, gate + 1, std::memory_order_acq_rel)) {
      seen = 0;  // somebody else moved the gate: look again, at this same epoch too
      continue;
    }
    take_pieces(worker);
    if ((gate_.fetch_sub(1, std::memory_order_acq_rel) & (kCount | kOpen)) == 1) gate_.notify_all();
  }
}

void Pool::run(int64_t n, int64_t grain, Piece piece, void* context) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  std::unique_lock lock(region_, std::defer_lock);
  const int threads = this->threads();
  if (threads == 1 || n <= grain || !lock.try_lock()) return piece(context, 0, n, 0);

  const int64_t grains = (n + grain - 1) / grain;
  n_ = n;
  step_ = std::max<int64_t>(1, grains / (threads * kPiecesPerThread)) * grain;
  piece_ = piece;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  if (static_cast<int>(workers_.size()) + 1 < threads) start_workers(threads - 1);

  // Epochs start at 1 and a worker's "nothing seen" is 0.
  const uint64_t epoch = std::max<uint64_t>(1, ((gate_.load() >> 32) + 1) & 0xffffffffu);
  gate_.store(epoch << 32 | kOpen, std::memory_order_release);
  bell_.fetch_add(1, std::memory_order_release);
  bell_.notify_all();

  take_pieces(0);

  uint64_t gate = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  for (int spins = 0; gate & kCount; gate = gate_.load(std::memory_order_acquire)) {
    if (spins++ < kSpins)
      pause();
    else
      gate_.wait(gate, std::memory_order_acquire);
  }
  if (short_of_memory_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
}

}  // namespace ss
