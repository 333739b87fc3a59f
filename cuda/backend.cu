// The CUDA device behind native/backend.h, and the module's one exported function.
#include "../native/backend.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "allocator.h"
#include "queue.h"
#include "stream.h"

namespace ss::cuda {

constinit const Kernel* kernels = nullptr;

namespace {

constexpr int kOldestCard = 8;  // compute capability: the first with bf16

struct Call {  // a kernel with its arguments
  const Kernel* kernel;
  std::vector<Arg> args;
};

// Calls are collected where capture() runs; the queue's thread turns them into a CUDA graph.
struct Graph {
  std::vector<Call> calls;
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();
  cudaGraphExec_t exec = nullptr;
};

Status failed(const char* text) {
  Status status{Status::failed};
  std::snprintf(status.text, sizeof status.text, "%s", text);
  return status;
}

class Cuda final : public Backend {
 public:
  Cuda(int device, cudaStream_t stream, cudaEvent_t start, const cudaDeviceProp& card)
      : device_(device), stream_(stream), start_(start), card_(card), queue_(device, stream) {
    for (const Kernel* k = cuda::kernels; k; k = k->next) table_.push_back(k);
  }
  ~Cuda() override {
    queue_.close();
    queue_.drain();
    cudaSetDevice(device_);
    cudaEventDestroy(start_);
    cudaStreamDestroy(stream_);
  }

  DeviceInfo info() noexcept override {
    DeviceInfo info{};
    int driver = 0;
    cudaDriverGetVersion(&driver);
    std::snprintf(info.name, sizeof info.name, "%.127s", card_.name);
    std::snprintf(info.detail, sizeof info.detail, "compute capability %d.%d, driver for CUDA %d.%d",
                  card_.major, card_.minor, driver / 1000, driver % 1000 / 10);
    info.memory = static_cast<int64_t>(card_.totalGlobalMem);
    info.units = card_.multiProcessorCount;
    blas_.report(info.blas, sizeof info.blas);
    return info;
  }
  const Kernel* kernels() noexcept override { return cuda::kernels; }

  Status alloc(size_t bytes, void** out) noexcept override {
    cudaSetDevice(device_);
    const std::shared_ptr<Arena>& arena = capturing_ ? capturing_->arena : memory_.own();
    const Status status = memory_.alloc(bytes, arena, out);
    if (status.code == Status::ok) return status;
    const std::vector<void*> cached = memory_.trim();
    if (cached.empty()) return status;
    queue_.drain();
    Allocator::release(cached);
    return memory_.alloc(bytes, arena, out);
  }
  void free(void* memory) noexcept override { memory_.free(memory); }
  MemoryUse memory() noexcept override { return memory_.use(); }
  void set_memory_limit(int64_t bytes) noexcept override { memory_.set_limit(bytes); }
  void trim() noexcept override {
    queue_.push([blocks = memory_.trim()] { Allocator::release(blocks); });  // waits for the stream
  }

  Status run(int kernel, const Arg* args, int count) noexcept override {
    Call call{table_[static_cast<size_t>(kernel)], {args, args + count}};
    if (capturing_)
      capturing_->calls.push_back(std::move(call));
    else
      queue_.push([this, call = std::move(call)] { launch(call); });
    return {};
  }

  // JavaScript's memory is pageable: CUDA has taken it all, or written it all, when a copy returns.
  Status write(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer([=, this] {
      queue_.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "write");
      done.call(done.context, queue_.lost() ? queue_.take_failure() : Status{}, 0);
    });
  }
  Status read(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer([=, this] {
      queue_.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "read");
      queue_.note(cudaStreamSynchronize(stream_), "read");
      char text[sizeof(Status::text)];
      if (faults_.take(text, sizeof text)) queue_.fail(text);
      done.call(done.context, queue_.take_failure(), 0);
    });
  }
  Status stamp(Done done) noexcept override {
    return transfer([=, this] {
      cudaEvent_t now = nullptr;
      float milliseconds = 0;
      queue_.note(cudaEventCreate(&now), "stamp");
      queue_.note(cudaEventRecord(now, stream_), "stamp");
      queue_.note(cudaEventSynchronize(now), "stamp");
      queue_.note(cudaEventElapsedTime(&milliseconds, start_, now), "stamp");
      cudaEventDestroy(now);
      done.call(done.context, queue_.lost() ? queue_.take_failure() : Status{}, milliseconds);
    });
  }

  Status begin_capture() noexcept override {
    if (capturing_) return failed("a capture is under way already");
    capturing_ = std::make_shared<Graph>();
    return {};
  }
  Status end_capture(void** graph) noexcept override {
    if (!capturing_) return failed("no capture is under way");
    queue_.push([this, made = capturing_] { instantiate(*made); });
    *graph = new std::shared_ptr<Graph>(std::move(capturing_));
    return {};
  }
  Status replay(void* graph) noexcept override {
    if (capturing_) return failed("a captured graph cannot hold another one");
    queue_.push([this, graph = *static_cast<std::shared_ptr<Graph>*>(graph)] {
      if (graph->exec && !queue_.closing()) queue_.note(cudaGraphLaunch(graph->exec, stream_), "replay");
    });
    return {};
  }
  void drop(void* graph) noexcept override {
    auto* held = static_cast<std::shared_ptr<Graph>*>(graph);
    memory_.drop(*(*held)->arena);
    queue_.push([this, graph = *held] {
      cudaStreamSynchronize(stream_);  // a replay may still run
      if (graph->exec) cudaGraphExecDestroy(graph->exec);
    });
    delete held;
  }

 private:
  Status transfer(Queue::Task task) {
    if (capturing_) return failed("nothing can be read or written while a graph is captured");
    queue_.push(std::move(task));
    return {};
  }
  void launch(const Call& call) {
    if (queue_.lost() || queue_.closing()) return;
    Stream stream{stream_, call.kernel->name, &faults_, &blas_};
    call.kernel->call(stream, call.args.data());
    queue_.note(cudaGetLastError(), call.kernel->name);
  }
  void instantiate(Graph& graph) {
    cudaGraph_t recorded = nullptr;
    queue_.note(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (const Call& call : graph.calls) launch(call);
    queue_.note(cudaStreamEndCapture(stream_, &recorded), "capture");
    if (!recorded) return;
    queue_.note(cudaGraphInstantiate(&graph.exec, recorded, 0), "capture");
    cudaGraphDestroy(recorded);
  }

  const int device_;
  const cudaStream_t stream_;
  const cudaEvent_t start_;
  const cudaDeviceProp card_;
  std::vector<const Kernel*> table_;
  Allocator memory_;
  std::shared_ptr<Graph> capturing_;
  Faults faults_;
  Blas blas_;
  Queue queue_;  // last: it stops before the memory goes
};

__global__ void probe() {}

thread_local char reason[512];
template <class... T>
const char* decline(const char* format, T... values) {
  std::snprintf(reason, sizeof reason, format, values...);
  return reason;
}

const char* open(int abi, int index, Backend** out) {
  if (abi != kAbi)
    return decline("it is of another version (%d) than the addon (%d); install both again", kAbi, abi);
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "there is no NVIDIA driver on this machine";
  if (driver / 1000 < runtime / 1000)
    return decline("the NVIDIA driver is too old: it is for CUDA %d.%d, this build needs %d.0 or later",
                   driver / 1000, driver % 1000 / 10, runtime / 1000);
  if (const cudaError_t error = cudaGetDeviceCount(&count))
    return decline("CUDA does not start: %s", cudaGetErrorString(error));
  if (index < 0 || index >= count) return decline("there is no card %d; this machine has %d", index, count);

  cudaDeviceProp card;
  if (const cudaError_t error = cudaGetDeviceProperties(&card, index))
    return decline("CUDA does not start: %s", cudaGetErrorString(error));
  if (card.major < kOldestCard)
    return decline("%s is too old: its compute capability is %d.%d, expected %d.0 or later", card.name,
                   card.major, card.minor, kOldestCard);
  cudaFuncAttributes unused;
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr;
  cudaError_t error = cudaSetDevice(index);
  if (!error) error = cudaFuncGetAttributes(&unused, probe);  // no code for this card?
  if (!error) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (!error) error = cudaEventCreate(&start);
  if (!error) error = cudaEventRecord(start, stream);
  if (error) return decline("%s cannot be used: %s", card.name, cudaGetErrorString(error));
  try {
    *out = new Cuda(index, stream, start, card);
  } catch (const std::exception& error) {
    return decline("%s cannot be used: %s", card.name, error.what());
  }
  return nullptr;
}

}  // namespace
}  // namespace ss::cuda

// Returns nullptr and a device, or why there is none: text that stays until the next call.
extern "C" __attribute__((visibility("default"))) const char* selective_scan_open(int abi, int index,
                                                                                  ss::Backend** out) {
  return ss::cuda::open(abi, index, out);
}
