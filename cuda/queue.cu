#include "queue.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace ss::cuda {
namespace {

// After these the process can do nothing more with the card, says CUDA.
bool costs_the_context(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

// All queues of the process, never destroyed. exit() takes the CUDA driver down while their threads
// still run: a launch in that moment crashes. The driver is up when the first queue is made, so this
// handler runs before the driver's own.
struct Live {
  std::mutex mutex;
  std::vector<Queue*> queues;
};
Live& live() {
  static Live* all = [] {
    std::atexit([] {
      std::lock_guard lock(live().mutex);
      for (Queue* queue : live().queues) queue->abandon();
    });
    return new Live;
  }();
  return *all;
}

}  // namespace

Queue::Queue(int device, cudaStream_t stream)
    : stream_(stream), thread_([this, device] { loop(device); }) {
  std::lock_guard lock(live().mutex);
  live().queues.push_back(this);
}

void Queue::close() {
  std::lock_guard lock(mutex_);
  closing_ = true;
  changed_.notify_all();
}

Queue::~Queue() {
  {
    std::lock_guard lock(live().mutex);
    std::erase(live().queues, this);
  }
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Queue::push(Task task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void Queue::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return tasks_.empty() && !busy_; });
  cudaStreamSynchronize(stream_);  // what it reports, the next read reports too
}

void Queue::abandon() {
  std::unique_lock lock(mutex_);
  tasks_.clear();
  closing_ = true;
  changed_.wait(lock, [this] { return !busy_; });
}

void Queue::loop(int device) {
  cudaSetDevice(device);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    {
      const Task task = std::move(tasks_.front());
      tasks_.pop_front();
      busy_ = true;
      lock.unlock();
      task();
    }
    lock.lock();
    busy_ = false;
    if (tasks_.empty()) changed_.notify_all();
  }
}

void Queue::note(cudaError_t error, const char* during) {
  if (error == cudaSuccess || lost()) return;
  cudaGetLastError();  // the next call must not meet it
  const char* text = cudaGetErrorString(error);
  if (costs_the_context(error)) {
    failure_.code = Status::lost;
    std::snprintf(failure_.text, sizeof failure_.text,
                  "the CUDA device is lost: %s, seen during %s; start the process again", text, during);
  } else if (failure_.code == Status::ok) {
    failure_.code = Status::failed;
    std::snprintf(failure_.text, sizeof failure_.text, "%s: %s", during, text);
  }
}

void Queue::fail(const char* text) {
  if (failure_.code != Status::ok) return;
  failure_.code = Status::failed;
  std::snprintf(failure_.text, sizeof failure_.text, "%s", text);
}

Status Queue::take_failure() {
  const Status failure = failure_;
  if (!lost()) failure_ = {};
  return failure;
}

}  // namespace ss::cuda
