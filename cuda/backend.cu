// The CUDA device behind native/backend.h, and the module's one exported function.
#include "../native/backend.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <exception>
#include <memory>
#include <vector>

#include "allocator.h"
#include "exchange.h"
#include "queue.h"
#include "scratch.h"
#include "stream.h"

namespace ss::cuda {

constinit const Kernel* kernels = nullptr;

namespace {

constexpr int kOldestCard = 8;  // compute capability: the first with bf16
constexpr size_t kSpares = 4;

struct Destroy {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaGraphExec_t exec) const { cudaGraphExecDestroy(exec); }
};
template <class T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Destroy>;

struct Call {  // a kernel with its arguments
  const Kernel* kernel;
  std::vector<Arg> args;
};

// Calls are collected where capture() runs; the queue's thread turns them into a CUDA graph.
struct Graph {
  std::vector<Call> calls;
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();
  Owned<cudaGraphExec_t> exec;
};

Status failed(const char* text) {
  Status status{Status::failed};
  std::snprintf(status.text, sizeof status.text, "%s", text);
  return status;
}

class Cuda final : public Backend {
 public:
  Cuda(int device, Owned<cudaStream_t> stream, const cudaDeviceProp& card)
      : device_(device),
        stream_(std::move(stream)),
        card_(card),
        queue_(device, stream_.get(), failure_) {
    for (const Kernel* k = cuda::kernels; k; k = k->next) table_.push_back(k);
  }
  ~Cuda() override { cudaSetDevice(device_); }  // for what the members give back

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
  bool find_fft(char* text, size_t size) noexcept override {
    const bool found = fft_.find();
    fft_.report(text, size);
    return found;
  }
  const Kernel* kernels() noexcept override { return cuda::kernels; }

  Status alloc(size_t bytes, void** out) noexcept override {
    if (int now = -1; cudaGetDevice(&now) || now != device_) cudaSetDevice(device_);
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
    queue_.push([this, blocks = memory_.trim()] {
      spares_.clear();
      Allocator::release(blocks);  // waits for the stream
    });
  }

  Status run(int kernel, const Arg* args, int count) noexcept override {
    Call call{table_[static_cast<size_t>(kernel)], {args, args + count}};
    if (capturing_)
      capturing_->calls.push_back(std::move(call));
    else
      queue_.push([this, call = std::move(call)] {
        Following none;
        launch(call, &none);
      });
    return {};
  }

  Status write(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer(done, [=, this] {
      queue_.transfers().write(to, from, bytes);
      done.call(done.context, failure_.lost() ? failure_.take() : Status{}, 0);
    });
  }
  Status read(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer(done, [=, this] { queue_.transfers().read(to, from, bytes, done); });
  }
  Status stamp(Done done) noexcept override {
    return transfer(done, [=, this] { queue_.transfers().stamp(done); });
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
      if (graph->exec && !queue_.closing())
        failure_.note(cudaGraphLaunch(graph->exec.get(), stream_.get()), "replay");
    });
    return {};
  }
  void drop(void* graph) noexcept override {
    auto* held = static_cast<std::shared_ptr<Graph>*>(graph);
    memory_.drop(*(*held)->arena);
    queue_.push([this, graph = *held] { spare(*graph); });
    delete held;
  }

 private:
  template <class Task>
  Status transfer(Done done, Task task) {
    if (capturing_) return failed("nothing can be read or written while a graph is captured");
    queue_.push([this, done, task] {
      if (!queue_.closing()) return task();
      done.call(done.context, Status{Status::lost}, 0);
    });
    return {};
  }

  // What follows runs on the queue's thread.
  void launch(const Call& call, Following* following) {
    if (failure_.lost() || queue_.closing()) return;
    Stream stream{stream_.get(), call.kernel->name, &queue_.transfers().faults(),
                  &blas_,        &fft_,             &exchange_,
                  following};
    call.kernel->call(stream, call.args.data());
    failure_.note(cudaGetLastError(), call.kernel->name);
  }
  void launch_all(const std::vector<Call>& calls) {
    std::vector<Following::Call> all;
    for (const Call& call : calls) all.push_back({call.kernel, call.args.data()});
    for (size_t i = 0; i < calls.size(); i++) {
      Following following{all.data() + i + 1, static_cast<int>(calls.size() - i - 1)};
      launch(calls[i], &following);
      i += static_cast<size_t>(following.taken);
    }
  }
  void instantiate(Graph& graph) {
    if (queue_.closing()) return;
    cudaGraph_t recorded = nullptr;
    failure_.note(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "capture");
    launch_all(graph.calls);
    failure_.note(cudaStreamEndCapture(stream_.get(), &recorded), "capture");
    if (!recorded) return;
    if (!take_spare(graph, recorded)) {
      cudaGraphExec_t made = nullptr;
      failure_.note(cudaGraphInstantiate(&made, recorded, 0), "capture");
      graph.exec.reset(made);
    }
    cudaGraphDestroy(recorded);
  }
  // The same kernels with other arguments: an executable that was dropped takes them over.
  bool take_spare(Graph& graph, cudaGraph_t recorded) {
    const auto same = [](const Call& a, const Call& b) { return a.kernel == b.kernel; };
    for (auto spare = spares_.begin(); spare != spares_.end(); ++spare) {
      if (!std::ranges::equal(spare->calls, graph.calls, same)) continue;
      cudaGraphExecUpdateResultInfo info;
      if (cudaGraphExecUpdate(spare->exec.get(), recorded, &info) == cudaSuccess) {
        graph.exec = std::move(spare->exec);
        spares_.erase(spare);
        return true;
      }
      cudaGetLastError();  // of another batch size, perhaps: the next call must not meet it
    }
    return false;
  }
  void spare(Graph& graph) {
    if (!graph.exec) return;
    spares_.push_back({std::move(graph.calls), graph.arena, std::move(graph.exec)});
    if (spares_.size() <= kSpares) return;
    cudaStreamSynchronize(stream_.get());  // a replay of it may still run
    spares_.pop_front();
  }

  const int device_;
  const Owned<cudaStream_t> stream_;
  const cudaDeviceProp card_;
  std::vector<const Kernel*> table_;
  Failure failure_;
  Allocator memory_{failure_};
  std::shared_ptr<Graph> capturing_;
  Blas blas_;
  Exchange exchange_;
  Fft fft_{device_};
  std::deque<Graph> spares_;  // dropped ones, the oldest first; for the queue's thread
  Queue queue_;               // last: it stops before the memory goes
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
  cudaError_t error = cudaSetDevice(index);
  if (!error) error = cudaFuncGetAttributes(&unused, probe);  // no code for this card?
  if (!error) error = Scratch::prepare(index);
  if (!error) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error) return decline("%s cannot be used: %s", card.name, cudaGetErrorString(error));
  try {
    *out = new Cuda(index, Owned<cudaStream_t>(stream), card);
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
