#include "device.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "memory.h"
#include "pool.h"
#include "queue.h"

namespace ss {

namespace base {
extern const Kernel* kernels;
}
#ifdef SS_HAVE_V3
namespace v3 {
extern const Kernel* kernels;
}
#endif
#ifdef SS_HAVE_V4
namespace v4 {
extern const Kernel* kernels;
}
#endif

namespace {

struct Level {
  const char* name;
  const Kernel* kernels;
};

// The best instruction level of this processor. SELECTIVE_SCAN_LEVEL=v3 or base asks for less.
Level level() {
  const char* set = std::getenv("SELECTIVE_SCAN_LEVEL");
  [[maybe_unused]] const std::string most = set ? set : "v4";
#ifdef SS_HAVE_V4
  if (most == "v4" && __builtin_cpu_supports("x86-64-v4")) return {"AVX-512", v4::kernels};
#endif
#ifdef SS_HAVE_V3
  if (most != "base" && __builtin_cpu_supports("x86-64-v3")) return {"AVX2", v3::kernels};
#endif
  return {"baseline", base::kernels};
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "CPU";
}

int64_t total_memory() {
  std::ifstream info("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  return info >> key >> kib ? kib * 1024 : 0;
}

Status failed(const char* text) {
  Status status{Status::failed};
  std::snprintf(status.text, sizeof status.text, "%s", text);
  return status;
}

class Cpu final : public Backend {
 public:
  Cpu() : level_(level()) {
    for (const Kernel* k = level_.kernels; k; k = k->next) table_.push_back(k);
  }
  ~Cpu() override { delete capturing_; }

  DeviceInfo info() noexcept override {
    DeviceInfo info{};
    std::snprintf(info.name, sizeof info.name, "%s", processor().c_str());
    std::snprintf(info.detail, sizeof info.detail, "%s", level_.name);
    info.memory = total_memory();
    info.units = Pool::instance().threads();
    return info;
  }
  bool find_fft(char* text, size_t size) noexcept override {
    std::snprintf(text, size, "PFFFT, built in");
    return true;
  }
  const Kernel* kernels() noexcept override { return level_.kernels; }

  Status alloc(size_t bytes, void** out) noexcept override {
    Arena* arena = capturing_ ? capturing_->arena : memory_.own();
    Status status = memory_.alloc(bytes, arena, out);
    if (status.code == Status::ok || memory_.use().cached == 0) return status;
    trim();
    return memory_.alloc(bytes, arena, out);
  }
  void free(void* memory) noexcept override { unmap(memory_.free(memory)); }
  void trim() noexcept override { unmap(memory_.trim()); }
  MemoryUse memory() noexcept override { return memory_.use(); }
  void set_memory_limit(int64_t bytes) noexcept override { memory_.set_limit(bytes); }

  Status run(int kernel, const Arg* args, int count) noexcept override {
    Call call{table_[static_cast<size_t>(kernel)], {args, args + count}};
    if (capturing_)
      capturing_->calls.push_back(std::move(call));
    else
      queue_.push({.kind = Task::call, .what = std::move(call)});
    return {};
  }
  Status write(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer({.kind = Task::copy, .to = to, .from = from, .bytes = bytes, .done = done});
  }
  Status read(void* to, const void* from, size_t bytes, Done done) noexcept override {
    return transfer({.kind = Task::read, .to = to, .from = from, .bytes = bytes, .done = done});
  }
  Status stamp(Done done) noexcept override {
    return transfer({.kind = Task::stamp, .done = done});
  }

  Status begin_capture() noexcept override {
    if (capturing_) return failed("a capture is under way already");
    capturing_ = new Graph{{}, new Arena};
    return {};
  }
  Status end_capture(void** graph) noexcept override {
    if (!capturing_) return failed("no capture is under way");
    *graph = new std::shared_ptr<const Graph>(capturing_);
    capturing_ = nullptr;
    return {};
  }
  Status replay(void* graph) noexcept override {
    if (capturing_) return failed("a captured graph cannot hold another one");
    queue_.push({.kind = Task::replay, .graph = *static_cast<std::shared_ptr<const Graph>*>(graph)});
    return {};
  }
  void drop(void* graph) noexcept override {
    auto* held = static_cast<std::shared_ptr<const Graph>*>(graph);
    memory_.drop((*held)->arena);
    delete held;
  }

 private:
  Status transfer(Task&& task) {
    if (capturing_) return failed("nothing can be read or written while a graph is captured");
    queue_.push(std::move(task));
    return {};
  }
  void unmap(std::vector<Block*> blocks) {
    if (!blocks.empty()) queue_.push({.kind = Task::unmap, .blocks = std::move(blocks)});
  }

  Level level_;
  std::vector<const Kernel*> table_;
  Memory memory_;
  Graph* capturing_ = nullptr;
  Queue queue_;  // last: it stops before the memory goes
};

}  // namespace

Backend* open_cpu() { return new Cpu; }

}  // namespace ss
