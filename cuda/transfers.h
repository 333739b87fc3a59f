// Bytes on their way between the device and the host, in pieces through a ring of pinned memory. A
// thread of its own waits for each piece, in order, so that the thread that feeds the stream goes on
// to the next step while a read of the last one is under way.
#pragma once
#include <cuda_runtime.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "failure.h"
#include "faults.h"

namespace ss::cuda {

class Transfers {
 public:
  Transfers(int device, cudaStream_t stream, Failure& failure);  // with the device current
  ~Transfers();  // once nothing more comes, when all that is under way has arrived
  Transfers(const Transfers&) = delete;

  // For the thread that feeds the stream. Each may wait for a free piece of the ring.
  void read(void* to, const void* from, size_t bytes, Done done);
  void write(void* to, const void* from, size_t bytes);  // `from` has been taken when it returns
  void stamp(Done done);
  Faults& faults() { return faults_; }

  void abandon();  // drops what is under way, and returns when nothing more is asked of the device

 private:
  static constexpr unsigned kPieces = 64;
  static constexpr size_t kRoom = 128 << 10;  // bytes of a piece
  struct Piece {
    enum Kind { sent, received, last_received, stamped } kind;
    cudaEvent_t reached, timed;  // timed: of a stamp. It costs the stream a microsecond more
    char* room;
    Fault* seen;  // what was reported before a read ended: see Faults
    void* to;
    size_t bytes;
    Done done;
    Status status;
  };

  static cudaEvent_t event_of(const Piece& piece) {
    return piece.kind == Piece::stamped ? piece.timed : piece.reached;
  }
  Piece& next();  // waits until one is free
  void send(Piece& piece);
  void arrive(Piece& piece);
  void loop(int device);

  const cudaStream_t stream_;
  Failure& failure_;
  Faults faults_;
  cudaEvent_t start_ = nullptr;  // stamps count from here
  char* memory_ = nullptr;
  Piece pieces_[kPieces] = {};
  std::mutex mutex_;
  std::condition_variable more_, fewer_;
  unsigned sent_ = 0, arrived_ = 0;  // pieces so far
  bool closing_ = false, busy_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ss::cuda
