#include "queue.h"

#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ss {

int Stream::threads() const { return Pool::instance().threads(); }

void Stream::parallel_pieces(int64_t n, int64_t grain, Piece piece, void* context) {
  Pool::instance().run(n, grain, piece, context);
}

void* Stream::scratch(int worker, size_t bytes) {
  auto& own = impl->scratch[static_cast<size_t>(worker)];
  if (own.bytes < bytes) {
    own.bytes = (bytes + bytes / 4 + 63) / 64 * 64;
    own.memory.reset(static_cast<char*>(std::aligned_alloc(64, own.bytes)));
    if (!own.memory) {
      own.bytes = 0;
      throw std::bad_alloc();  // the pool carries it to the queue, which fails the op
    }
  }
  return own.memory.get();
}

void Stream::fail(const char* format, ...) {
  static std::mutex mutex;  // workers may fail at the same time; the first one counts
  std::lock_guard lock(mutex);
  if (impl->failure.code != Status::ok) return;
  impl->failure.code = Status::failed;
  const size_t size = sizeof impl->failure.text;
  const int used = std::snprintf(impl->failure.text, size, "%s: ", impl->op);
  va_list args;
  va_start(args, format);
  std::vsnprintf(impl->failure.text + used, size - static_cast<size_t>(used), format, args);
  va_end(args);
}

Queue::Queue() : thread_([this] { loop(); }) {}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  more_.notify_one();
  thread_.join();
}

void Queue::push(Task&& task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  more_.notify_one();
}

void Queue::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    more_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    run(task);
    lock.lock();
  }
}

void Queue::run(const Call& call) {
  impl_.op = call.kernel->name;
  try {
    call.kernel->call(stream_, call.args.data());
  } catch (const std::bad_alloc&) {
    stream_.fail("out of memory for its working space");
  }
}

void Queue::run(Task& task) {
  Status status;
  double value = 0;
  if (closing_ && task.kind != Task::unmap) {
    status.code = Status::lost;
    if (task.done.call) task.done.call(task.done.context, status, 0);
    return;
  }
  switch (task.kind) {
    case Task::call:
      return run(task.what);
    case Task::replay:
      for (const Call& call : task.graph->calls)
        if (!closing_) run(call);
      return;
    case Task::unmap:
      for (Block* block : task.blocks) Memory::unmap(block);
      return;
    case Task::read:
      std::swap(status, impl_.failure);
      if (status.code == Status::ok && task.bytes) std::memcpy(task.to, task.from, task.bytes);
      break;
    case Task::copy:
      if (task.bytes) std::memcpy(task.to, task.from, task.bytes);
      break;
    case Task::stamp:
      value = std::chrono::duration<double, std::milli>(
                  std::chrono::steady_clock::now().time_since_epoch())
                  .count();
      break;
  }
  task.done.call(task.done.context, status, value);
}

}  // namespace ss
