#include "transfers.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace ss::cuda {
namespace {

constexpr int kThreads = 128;
constexpr size_t kByKernel = 8 << 10;  // so few bytes a kernel writes to the host sooner than a copy

static_assert(Faults::kMost <= kThreads);

// Moves the end of a read to the host, with all faults; they count as told from here on.
__global__ void hand_over(const uint32_t* from, uint32_t* to, int words, Fault* faults, Fault* seen) {
  for (int i = threadIdx.x; i < words; i += kThreads) to[i] = from[i];
  if (threadIdx.x >= Faults::kMost) return;
  seen[threadIdx.x] = faults[threadIdx.x];
  faults[threadIdx.x] = {kNoFault, 0};
}

bool in_words(const void* from, size_t bytes) {
  return bytes <= kByKernel && reinterpret_cast<uintptr_t>(from) % 4 == 0 && bytes % 4 == 0;
}

void require(cudaError_t error) {
  if (error) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace

Transfers::Transfers(int device, cudaStream_t stream, Failure& failure)
    : stream_(stream), failure_(failure) {
  constexpr size_t seen = Faults::kMost * sizeof(Fault);
  void* memory = nullptr;
  require(cudaHostAlloc(&memory, kPieces * (kRoom + seen), cudaHostAllocMapped));
  memory_ = static_cast<char*>(memory);
  for (unsigned i = 0; i < kPieces; i++) {
    pieces_[i].room = memory_ + i * kRoom;
    pieces_[i].seen = reinterpret_cast<Fault*>(memory_ + kPieces * kRoom + i * seen);
    require(cudaEventCreateWithFlags(&pieces_[i].reached, cudaEventDisableTiming));
    require(cudaEventCreate(&pieces_[i].timed));
  }
  require(cudaEventCreate(&start_));
  require(cudaEventRecord(start_, stream_));
  thread_ = std::thread([this, device] { loop(device); });
}

Transfers::~Transfers() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  more_.notify_one();
  thread_.join();
  for (const Piece& piece : pieces_) {
    cudaEventDestroy(piece.reached);
    cudaEventDestroy(piece.timed);
  }
  cudaEventDestroy(start_);
  cudaFreeHost(memory_);
}

void Transfers::read(void* to, const void* from, size_t bytes, Done done) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  for (;;) {
    Piece& piece = next();
    piece.kind = bytes > kRoom ? Piece::received : Piece::last_received;
    piece.to = target;
    piece.bytes = std::min(bytes, kRoom);
    const bool by_kernel = in_words(source, bytes);
    if (!by_kernel)
      failure_.note(
          cudaMemcpyAsync(piece.room, source, piece.bytes, cudaMemcpyDeviceToHost, stream_), "read");
    if (piece.kind == Piece::last_received) {
      hand_over<<<1, kThreads, 0, stream_>>>(
          reinterpret_cast<const uint32_t*>(source), reinterpret_cast<uint32_t*>(piece.room),
          by_kernel ? static_cast<int>(bytes / 4) : 0, faults_.memory(), piece.seen);
      failure_.note(cudaGetLastError(), "read");
      piece.done = done;
      piece.status = failure_.take();  // of what was launched up to here
      return send(piece);
    }
    send(piece);
    target += kRoom;
    source += kRoom;
    bytes -= kRoom;
  }
}

void Transfers::write(void* to, const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kRoom) {
    Piece& piece = next();
    piece.kind = Piece::sent;
    const size_t some = std::min(bytes - at, kRoom);
    std::memcpy(piece.room, static_cast<const char*>(from) + at, some);
    failure_.note(cudaMemcpyAsync(static_cast<char*>(to) + at, piece.room, some,
                                  cudaMemcpyHostToDevice, stream_),
                  "write");
    send(piece);
  }
}

void Transfers::stamp(Done done) {
  Piece& piece = next();
  piece.kind = Piece::stamped;
  piece.done = done;
  send(piece);
}

Transfers::Piece& Transfers::next() {
  std::unique_lock lock(mutex_);
  fewer_.wait(lock, [this] { return sent_ - arrived_ < kPieces; });
  return pieces_[sent_ % kPieces];
}

void Transfers::send(Piece& piece) {
  failure_.note(cudaEventRecord(event_of(piece), stream_), "transfer");
  {
    std::lock_guard lock(mutex_);
    sent_++;
  }
  more_.notify_one();
}

void Transfers::arrive(Piece& piece) {
  failure_.note(cudaEventSynchronize(event_of(piece)), "read");
  if (piece.kind == Piece::sent) return;
  if (piece.kind == Piece::stamped) {
    float milliseconds = 0;
    failure_.note(cudaEventElapsedTime(&milliseconds, start_, piece.timed), "stamp");
    return piece.done.call(piece.done.context, failure_.lost() ? failure_.take() : Status{},
                           milliseconds);
  }
  if (failure_.lost())
    piece.status = failure_.take();
  else
    std::memcpy(piece.to, piece.room, piece.bytes);
  if (piece.kind == Piece::received) return;
  if (piece.status.code == Status::ok) faults_.describe(piece.seen, piece.status);
  piece.done.call(piece.done.context, piece.status, 0);
}

void Transfers::abandon() {
  std::unique_lock lock(mutex_);
  closing_ = true;
  arrived_ = sent_ - busy_;
  fewer_.wait(lock, [this] { return !busy_; });
}

void Transfers::loop(int device) {
  cudaSetDevice(device);
  std::unique_lock lock(mutex_);
  for (;;) {
    more_.wait(lock, [this] { return closing_ || sent_ != arrived_; });
    if (sent_ == arrived_) return;
    Piece& piece = pieces_[arrived_ % kPieces];
    busy_ = true;
    lock.unlock();
    arrive(piece);
    lock.lock();
    busy_ = false;
    arrived_++;
    fewer_.notify_all();
  }
}

}  // namespace ss::cuda
