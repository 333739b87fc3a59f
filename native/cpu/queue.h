// A thread that runs tasks in order.
#pragma once
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
  std::vector<Scratch> scratch;
};

class Queue {
 public:
  Queue();
  ~Queue();  // runs what is queued, then stops
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
  bool closing_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ss
