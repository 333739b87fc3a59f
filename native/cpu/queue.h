// A thread that runs tasks in order.
#pragma once
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../backend.h"
#include "memory.h"
#include "pool.h"
#include "stream.h"

namespace ss {

struct Call {  // a kernel with its arguments
  const Kernel* kernel;
  std::vector<Arg> args;
};

struct Graph {
  std::vector<Call> calls;
  Arena* arena;
};

struct Task {
  enum Kind { call, replay, copy, read, stamp, unmap } kind;
  Call what{};
  std::shared_ptr<const Graph> graph{};
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  Done done{};
  std::vector<Block*> blocks{};
};

struct Stream::Impl {
  const char* op = "";
  Status failure{};
  struct Scratch {
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
    size_t bytes = 0;
  };
  std::array<Scratch, Pool::kMaxThreads> scratch;
};

class Queue {
 public:
  Queue();
  ~Queue();  // stops after the kernel that is running; what waits is dropped
  void push(Task&& task);

 private:
  void loop();
  void run(Task& task);
  void run(const Call& call);

  Stream::Impl impl_;
  Stream stream_{&impl_};
  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<Task> tasks_;
  std::atomic<bool> closing_{false};
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ss
