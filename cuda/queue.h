// A thread that feeds the device's stream, so that no caller ever waits for a launch or a copy.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "../native/backend.h"

namespace ss::cuda {

class Queue {
 public:
  using Task = std::function<void()>;  // runs on the queue's thread, with the device current

  Queue(int device, cudaStream_t stream);
  ~Queue();  // runs what is queued, then stops
  void push(Task task);
  void drain();    // waits until all that is queued has run on the device
  void close();    // from here on tasks launch nothing new; those that report still do
  void abandon();  // drops what is queued, and returns when nothing more is given to the device

  // The rest belongs to tasks.
  bool closing() const { return closing_; }
  cudaStream_t stream() const { return stream_; }
  void note(cudaError_t error, const char* during);  // remembers the first failure
  void fail(const char* text);                         // the same, for what is not CUDA's error
  Status take_failure();                             // what failed since the last call; `lost` stays
  bool lost() const { return failure_.code == Status::lost; }

 private:
  void loop(int device);

  const cudaStream_t stream_;
  Status failure_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool busy_ = false;
  std::atomic<bool> closing_{false};
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ss::cuda
