// A thread that feeds the device's stream, so that no caller ever waits for a launch or a copy.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "transfers.h"

namespace ss::cuda {

class Queue {
 public:
  using Task = std::function<void()>;  // runs on the queue's thread, with the device current

  Queue(int device, cudaStream_t stream, Failure& failure);  // with the device current
  // Tasks that are queued still run, but launch nothing new: see closing(). Returns when all that
  // was launched has ended and all that was under way has arrived.
  ~Queue();
  void push(Task task);
  void drain();    // waits until all that is queued has run on the device
  void abandon();  // drops what is queued, and returns when nothing more is asked of the device

  // The rest belongs to tasks.
  bool closing() const { return closing_; }
  Transfers& transfers() { return transfers_; }

 private:
  void loop(int device);
  void look_around(std::unique_lock<std::mutex>& lock);
  bool idle() const { return tasks_.empty() && !busy_; }

  const cudaStream_t stream_;
  Transfers transfers_;
  std::mutex mutex_;
  std::condition_variable more_, idle_;
  std::deque<Task> tasks_;
  bool busy_ = false, waiting_ = false;
  std::atomic<bool> closing_{false};
  std::atomic<unsigned> pushed_{0};  // tasks so far
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ss::cuda
