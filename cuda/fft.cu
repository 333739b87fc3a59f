#include "fft.h"

#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "library.h"

namespace ss::cuda {
namespace {

// Of cufft.h, which is not there when this is built.
enum : int { kC2C = 0x29 };

struct Api {
  int (*GetVersion)(int*);
  int (*Create)(int*);
  int (*Destroy)(int);
  int (*SetAutoAllocation)(int, int);
  int (*MakePlanMany64)(int, int rank, long long* n, long long* in_embed, long long in_stride,
                        long long in_dist, long long* out_embed, long long out_stride,
                        long long out_dist, int type, long long batch, size_t* workspace);
  int (*SetWorkArea)(int, void*);
  int (*SetStream)(int, cudaStream_t);
  int (*ExecC2C)(int, float2*, float2*, int way);
};

// Null, or what is missing.
const char* resolve(void* library, Api& api) {
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
#define SS_FIND(name) \
  if (!find(api.name, "cufft" #name)) return "it lacks cufft" #name
  SS_FIND(GetVersion);
  SS_FIND(Create);
  SS_FIND(Destroy);
  SS_FIND(SetAutoAllocation);
  SS_FIND(MakePlanMany64);
  SS_FIND(SetWorkArea);
  SS_FIND(SetStream);
  SS_FIND(ExecC2C);
#undef SS_FIND
  return nullptr;
}

constexpr const char* kVariable = "SELECTIVE_SCAN_CUFFT";
const std::vector<const char*> kNames = {"libcufft.so.12", "libcufft.so.11"};

}  // namespace

int64_t fft_size(int64_t least) {
  int64_t octave = 32;
  while (octave * 2 < least) octave *= 2;
  for (const int64_t quarters : {4, 5, 6, 7})
    if (octave / 4 * quarters >= least) return octave / 4 * quarters;
  return octave * 2;
}

struct Fft::Impl {
  const int device;
  std::mutex mutex;  // of what find() sets
  std::string text = "cuFFT is looked for at the first convolution of a whole sequence";
  bool looked = false;
  std::atomic<bool> works{false};
  Api api{};
  std::map<std::pair<int64_t, int64_t>, Plan> plans;  // by size and rows

  explicit Impl(int device) : device(device) {}
  ~Impl() {
    for (const auto& [key, plan] : plans) destroy(plan);
  }
  void destroy(const Plan& plan) {
    if (plan.handle) api.Destroy(plan.handle);
  }

  void look() {
    looked = true;
    std::string reasons;
    for (const std::string& path : library_places(kVariable, kNames, "cufft")) {
      const std::string reason = open(path);
      if (reason.empty()) return;
      // The loader's own search fails on most machines; what it says is of no help then.
      if (path.find('/') != std::string::npos) reasons += "\n  " + path + ": " + reason;
    }
    text = "cuFFT is not used, there are no convolutions of whole sequences: " +
           no_library(kVariable, kNames, "cuFFT", reasons);
  }

  // Empty, or why this library cannot be used.
  std::string open(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: kernels may run
    if (!library) return dlerror();
    if (const char* missing = resolve(library, api)) return missing;
    const std::string wrong = known_signal();
    if (!wrong.empty()) return wrong;
    int v = 0;
    api.GetVersion(&v);
    text = "cuFFT " + std::to_string(v / 1000) + "." + std::to_string(v / 100 % 10) + "." +
           std::to_string(v % 100) + " (" + path + ")";
    works = true;
    return "";
  }

  // What a library must get right before it is used: there and back, by way of a known sum.
  std::string known_signal() {
    constexpr int64_t size = 64;
    std::vector<float2> x(size), seen(size);
    float2 sum{};
    for (int64_t i = 0; i < size; i++) {
      x[i] = {static_cast<float>(i * 7 % 11 - 5), static_cast<float>(i * 3 % 13 - 6)};
      sum.x += x[i].x, sum.y += x[i].y;
    }
    cudaSetDevice(device);
    const Plan plan = make(size, 1);
    if (!plan.usable) {
      destroy(plan);
      return "it makes no plan on this card";
    }
    constexpr size_t bytes = size * sizeof(float2);
    float2* there = nullptr;
    void* work = nullptr;
    cudaStream_t stream = nullptr;
    bool ran = !cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) &&
               !cudaMalloc(&there, bytes) && !cudaMalloc(&work, plan.workspace + 1);
    const auto copy = [&](float2* to, const float2* from, cudaMemcpyKind kind) {
      return !cudaMemcpyAsync(to, from, bytes, kind, stream) && !cudaStreamSynchronize(stream);
    };
    const auto near = [](float2 a, float x, float y) {
      return std::fabs(a.x - x) < 1e-2f && std::fabs(a.y - y) < 1e-2f;
    };
    ran = ran && copy(there, x.data(), cudaMemcpyHostToDevice) &&
          execute(stream, plan.handle, forward, there, work) &&
          copy(seen.data(), there, cudaMemcpyDeviceToHost);
    bool right = near(seen[0], sum.x, sum.y);
    ran = ran && execute(stream, plan.handle, back, there, work) &&
          copy(seen.data(), there, cudaMemcpyDeviceToHost);
    for (int64_t i = 0; i < size; i++) right = right && near(seen[i], size * x[i].x, size * x[i].y);
    cudaFree(there);
    cudaFree(work);
    if (stream) cudaStreamDestroy(stream);
    destroy(plan);
    cudaGetLastError();  // the caller's launch must not meet it
    return !ran ? "it does not run on this card" : right ? "" : "it gets a known transform wrong";
  }

  Plan make(int64_t size, int64_t rows) {
    const Relaxed during;  // also while the library loads kernels
    Plan plan;
    long long n = size;
    size_t bytes = 0;
    plan.usable = api.Create(&plan.handle) == 0 && api.SetAutoAllocation(plan.handle, 0) == 0 &&
                  api.MakePlanMany64(plan.handle, 1, &n, &n, 1, n, &n, 1, n, kC2C, rows, &bytes) == 0;
    plan.workspace = static_cast<int64_t>(bytes);
    cudaGetLastError();
    return plan;
  }

  bool execute(cudaStream_t stream, int handle, Way way, float2* rows, void* workspace) {
    const Relaxed during;
    return api.SetStream(handle, stream) == 0 && api.SetWorkArea(handle, workspace) == 0 &&
           api.ExecC2C(handle, rows, rows, way) == 0;
  }
};

Fft::Fft(int device) : impl_(std::make_unique<Impl>(device)) {}
Fft::~Fft() = default;

bool Fft::find() noexcept {
  if (impl_->works) return true;
  try {
    const std::lock_guard lock(impl_->mutex);
    const Relaxed during;
    if (!impl_->looked) impl_->look();
  } catch (const std::exception&) {  // no memory for a text
  }
  return impl_->works;
}

void Fft::report(char* text, size_t size) const noexcept {
  const std::lock_guard lock(impl_->mutex);
  std::snprintf(text, size, "%s", impl_->text.c_str());
}

const Fft::Plan& Fft::plan(int64_t size, int64_t rows) noexcept {
  static const Plan none;
  try {
    const auto key = std::make_pair(size, rows);
    const auto found = impl_->plans.find(key);
    if (found != impl_->plans.end()) return found->second;
    const Plan made = impl_->make(size, rows);
    if (made.usable) return impl_->plans.emplace(key, made).first->second;
    impl_->destroy(made);
  } catch (const std::exception&) {  // no memory to keep it in
  }
  return none;
}

bool Fft::run(cudaStream_t stream, const Plan& plan, Way way, float2* rows,
              void* workspace) noexcept {
  return impl_->execute(stream, plan.handle, way, rows, workspace);
}

}  // namespace ss::cuda
