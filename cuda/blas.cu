#include "blas.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "card.h"
#include "library.h"

namespace ss::cuda {
namespace {

// Of cublasLt.h, which is not there when this is built.
enum : int { kR32F = 0, kR16F = 2, kR16BF = 14 };  // cudaDataType
enum : int { kCompute32F = 68 };                   // true f32: no TF32
enum : int { kDescTransA = 3, kDescTransB = 4, kDescEpilogue = 7, kDescBias = 8, kOpN = 0, kOpT = 1, kEpilogueBias = 4 };
enum : int { kPrefWorkspace = 1, kPrefReduction = 3, kPrefAlignA = 5 };  // then B, C, D
enum : int { kAlgoTile = 1 };
enum : int { kReduceInComputeType = 2 };  // parts of a split k are summed in f32

struct Algo {
  uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

using Object = void*;
struct Api {
  size_t (*GetVersion)();
  int (*Create)(Object*);
  int (*Destroy)(Object);
  int (*MatmulDescCreate)(Object*, int compute, int scale);
  int (*MatmulDescDestroy)(Object);
  int (*MatmulDescSetAttribute)(Object, int, const void*, size_t);
  int (*MatrixLayoutCreate)(Object*, int type, uint64_t rows, uint64_t columns, int64_t ld);
  int (*MatrixLayoutDestroy)(Object);
  int (*MatmulPreferenceCreate)(Object*);
  int (*MatmulPreferenceDestroy)(Object);
  int (*MatmulPreferenceSetAttribute)(Object, int, const void*, size_t);
  int (*MatmulAlgoGetHeuristic)(Object, Object, Object a, Object b, Object c, Object d,
                                Object preference, int wanted, Heuristic*, int* found);
  int (*MatmulAlgoConfigGetAttribute)(const Algo*, int, void*, size_t, size_t* written);
  int (*Matmul)(Object, Object, const void* alpha, const void* a, Object, const void* b, Object,
                const void* beta, const void* c, Object, void* d, Object, const Algo*,
                void* workspace, size_t bytes, cudaStream_t);
};

// Null, or what is missing.
const char* resolve(void* library, Api& api) {
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
#define SS_FIND(name) \
  if (!find(api.name, "cublasLt" #name)) return "it lacks cublasLt" #name
  SS_FIND(GetVersion);
  SS_FIND(Create);
  SS_FIND(Destroy);
  SS_FIND(MatmulDescCreate);
  SS_FIND(MatmulDescDestroy);
  SS_FIND(MatmulDescSetAttribute);
  SS_FIND(MatrixLayoutCreate);
  SS_FIND(MatrixLayoutDestroy);
  SS_FIND(MatmulPreferenceCreate);
  SS_FIND(MatmulPreferenceDestroy);
  SS_FIND(MatmulPreferenceSetAttribute);
  SS_FIND(MatmulAlgoGetHeuristic);
  SS_FIND(MatmulAlgoConfigGetAttribute);
  SS_FIND(Matmul);
#undef SS_FIND
  return nullptr;
}

constexpr const char* kVariable = "SELECTIVE_SCAN_CUBLASLT";
const std::vector<const char*> kNames = {"libcublasLt.so.13", "libcublasLt.so.12"};

int type_code(DType t) { return t == DType::f32 ? kR32F : t == DType::bf16 ? kR16BF : kR16F; }

uint32_t alignment(const void* p) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p);
  return static_cast<uint32_t>(std::min<uintptr_t>(256, bits & (~bits + 1)));
}

constexpr size_t kWorkspace = size_t{32} << 20;  // what NVIDIA advises for Hopper

// Which of the library's proposals is taken on Hopper: docs/kernels/prefill.md. Tiles of 128 columns by
// 128, 144, 160, 168 and 176, by their numbers in cublasLt.h; how much longer that of 160, and any other, takes.
constexpr int kProposals = 8;
constexpr int kNarrow[] = {20, 184, 29, 197, 201}, kUneven = 29;
constexpr float kOfUneven = 1.02f, kWide = 1.08f, kFewWaves = 1.5f, kWhisker = 0.03f;
// Below this k a product is bound by what it writes: no tile is better than another.
constexpr int64_t kFlat = 256;
constexpr float kFewFlatWaves = 2.5f;
constexpr int64_t kLarge = int64_t{5} << 20;  // elements of y from which it may matter
constexpr int64_t kShort = 2048;              // k up to which it does where w lies turned: gradients of inputs

constexpr size_t kPlans = 4096;                  // then all are made again

// The product that a library must get right before it is used: whole numbers, so the answer is
// exact.
struct Known {
  static constexpr int m = 24, n = 40, k = 64;
  uint16_t x[m * k], w[n * k];
  float y[m * n];

  static int x_at(int i, int j) { return (7 * i + 3 * j) % 5 - 2; }
  static int w_at(int i, int j) { return (5 * i + 11 * j) % 7 - 3; }
  static uint16_t bf16_of(int value) {
    const float f = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
  }
  Known() {
    for (int i = 0; i < m * k; i++) x[i] = bf16_of(x_at(i / k, i % k));
    for (int i = 0; i < n * k; i++) w[i] = bf16_of(w_at(i / k, i % k));
    std::fill(y, y + m * n, -1.0f);
  }
  bool right() const {
    for (int i = 0; i < m * n; i++) {
      int sum = 0;
      for (int j = 0; j < k; j++) sum += x_at(i / n, j) * w_at(i % n, j);
      if (y[i] != static_cast<float>(sum)) return false;
    }
    return true;
  }
};

}  // namespace

struct Blas::Impl {
  // As columns of column-major matrices: y^T [n, m] = (W^T)^T x^T.
  struct Plan {
    Object desc = nullptr, w = nullptr, x = nullptr, y = nullptr, c = nullptr;
    Algo algo{};
    bool usable = false;
  };
  using Key = std::array<int64_t, 9>;

  mutable std::mutex mutex;  // of `text`
  std::string text = "cuBLASLt is looked for at the first large matmul";
  bool looked = false;
  Api api{};
  Object handle = nullptr;
  char* workspace = nullptr;
  size_t bytes = 0;
  void* room = nullptr;
  std::map<Key, Plan> plans;

  ~Impl() { close(); }

  void close() {
    forget();
    if (handle) api.Destroy(handle);
    if (workspace) cudaFree(workspace);
    if (room) cudaFree(room);
    handle = nullptr;
    workspace = nullptr;
    room = nullptr;
  }
  void forget() {
    for (auto& [key, plan] : plans) {
      if (plan.desc) api.MatmulDescDestroy(plan.desc);
      for (Object layout : {plan.w, plan.x, plan.y, plan.c})
        if (layout) api.MatrixLayoutDestroy(layout);
    }
    plans.clear();
  }

  void look() {
    looked = true;
    std::string reasons;
    for (const std::string& path : library_places(kVariable, kNames, "cublas")) {
      const std::string reason = open(path);
      if (reason.empty()) return;
      close();
      // The loader's own search fails on most machines; what it says is of no help then.
      if (path.find('/') != std::string::npos) reasons += "\n  " + path + ": " + reason;
    }
    say("cuBLASLt is not used, large matmuls are slower: " +
        no_library(kVariable, kNames, "cuBLAS", reasons));
  }

  // Empty, or why this library cannot be used.
  std::string open(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: kernels may run
    if (!library) return dlerror();
    if (const char* missing = resolve(library, api)) return missing;
    if (const int status = api.Create(&handle)) {
      handle = nullptr;
      return "it does not start on this card (status " + std::to_string(status) + ")";
    }
    // A full card has no room for it; most kernels can do without.
    bytes = kWorkspace;
    if (cudaMalloc(&workspace, bytes + sizeof(Known))) {
      cudaGetLastError();
      bytes = 0;
      if (cudaMalloc(&workspace, sizeof(Known))) return cudaGetErrorString(cudaGetLastError());
    }
    if (!works()) return "it gets a known product wrong";
    const size_t v = api.GetVersion();
    say("cuBLASLt " + std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." +
        std::to_string(v % 100) + " (" + path + ")");
    return "";
  }

  bool works() {
    const auto known = std::make_unique<Known>();
    Known* there = reinterpret_cast<Known*>(workspace + bytes);
    const Product p{there->x, there->w, nullptr,  there->y,    Known::m,    Known::n,  Known::k,
                    Known::k, Known::k, Known::n, DType::bf16, DType::bf16, DType::f32};
    cudaStream_t stream = nullptr;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) return false;
    cudaError_t error =
        cudaMemcpyAsync(there, known.get(), sizeof(Known), cudaMemcpyHostToDevice, stream);
    const bool ran = !error && multiply(stream, p);
    if (ran)
      error = cudaMemcpyAsync(known.get(), there, sizeof(Known), cudaMemcpyDeviceToHost, stream);
    if (const cudaError_t waited = cudaStreamSynchronize(stream)) error = waited;
    cudaStreamDestroy(stream);
    cudaGetLastError();  // the caller's launch must not meet it
    return ran && !error && known->right();
  }

  void say(std::string what) {
    const std::lock_guard lock(mutex);
    text = std::move(what);
  }

  bool multiply(cudaStream_t stream, const Product& p) {
    const Plan& plan = plan_of(p);
    if (!plan.usable) return false;
    if (p.bias && api.MatmulDescSetAttribute(plan.desc, kDescBias, &p.bias, sizeof p.bias))
      return false;
    const float alpha = 1, beta = p.addend ? 1 : 0;
    const void* c = p.addend ? p.addend : p.y;
    return api.Matmul(handle, plan.desc, &alpha, p.w, plan.w, p.x, plan.x, &beta, c, plan.c, p.y,
                      plan.y, &plan.algo, workspace, bytes, stream) == 0;
  }

  const Plan& plan_of(const Product& p) {
    const void* c = p.addend ? p.addend : p.y;
    const uint32_t align[4] = {alignment(p.w), alignment(p.x), alignment(c), alignment(p.y)};
    const Key key{
        p.m,
        p.n,
        p.k,
        p.x_stride,
        p.w_stride,
        p.y_stride,
        static_cast<int64_t>(p.x_type) | static_cast<int64_t>(p.y_type) << 8 | int64_t{p.bias != nullptr} << 16 |
            int64_t{p.x_turned} << 17 | int64_t{p.w_turned} << 18,
        align[0] | int64_t{align[1]} << 16 | int64_t{align[2]} << 32 | int64_t{align[3]} << 48,
        p.addend ? p.addend_stride : -1};
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
    if (plans.size() >= kPlans) forget();
    Plan& plan = plans[key];
    plan.usable = make(p, align, plan);
    return plan;
  }

  bool make(const Product& p, const uint32_t (&align)[4], Plan& plan) {
    const int in = type_code(p.x_type), out = type_code(p.y_type);
    const int w_op = p.w_turned ? kOpN : kOpT, x_op = p.x_turned ? kOpT : kOpN;
    const uint32_t reduction = kReduceInComputeType;
    const uint64_t m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n),
                   k = static_cast<uint64_t>(p.k);
    if (api.MatmulDescCreate(&plan.desc, kCompute32F, kR32F) ||
        api.MatmulDescSetAttribute(plan.desc, kDescTransA, &w_op, sizeof w_op) ||
        api.MatmulDescSetAttribute(plan.desc, kDescTransB, &x_op, sizeof x_op) ||
        api.MatrixLayoutCreate(&plan.w, in, p.w_turned ? n : k, p.w_turned ? k : n, p.w_stride) ||
        api.MatrixLayoutCreate(&plan.x, in, p.x_turned ? m : k, p.x_turned ? k : m, p.x_stride) ||
        api.MatrixLayoutCreate(&plan.y, out, n, m, p.y_stride) ||
        api.MatrixLayoutCreate(&plan.c, out, n, m, p.addend ? p.addend_stride : p.y_stride))
      return false;
    const int epilogue = kEpilogueBias;
    if (p.bias &&
        (api.MatmulDescSetAttribute(plan.desc, kDescEpilogue, &epilogue, sizeof epilogue) ||
         api.MatmulDescSetAttribute(plan.desc, kDescBias, &p.bias, sizeof p.bias)))
      return false;
    Object preference = nullptr;
    if (api.MatmulPreferenceCreate(&preference)) return false;
    const uint64_t room = bytes;
    bool set =
        !api.MatmulPreferenceSetAttribute(preference, kPrefWorkspace, &room, sizeof room) &&
        !api.MatmulPreferenceSetAttribute(preference, kPrefReduction, &reduction, sizeof reduction);
    for (int i = 0; i < 4 && set; i++)
      set = !api.MatmulPreferenceSetAttribute(preference, kPrefAlignA + i, &align[i],
                                              sizeof align[i]);
    Heuristic proposals[kProposals]{};
    int count = 0;
    const bool several = is_hopper() && size_of(p.x_type) == 2 && !p.x_turned &&
                         (!p.w_turned || p.k <= kShort) && p.m * p.n >= kLarge;
    const int wanted = several ? kProposals : 1;
    set = set && !api.MatmulAlgoGetHeuristic(handle, plan.desc, plan.w, plan.x, plan.c, plan.y,
                                             preference, wanted, proposals, &count);
    api.MatmulPreferenceDestroy(preference);
    const Heuristic* best = set ? choose(proposals, count, p.k < kFlat) : nullptr;
    if (best) plan.algo = best->algo;
    return best;
  }

  // The library's first usable proposal or, for products that fill the card more than once, the one with
  // the least to wait for. Null: none is usable.
  const Heuristic* choose(const Heuristic* proposals, int count, bool flat) const {
    const float few = flat ? kFewFlatWaves : kFewWaves;
    const Heuristic* best = nullptr;
    float least = 0;
    for (const Heuristic* it = proposals; it != proposals + count; it++) {
      if (it->status != 0 || it->workspace > bytes) continue;
      if (best && best == proposals && best->waves < few) break;
      const float own = flat ? last_wave(*it) : last_wave(*it) * of_tile(*it);
      if (!best || own < least) best = it, least = own;
    }
    return best;
  }
  // How much longer than a full card's share of the work it takes: for the last wave's empty places, and for its
  // tile; a wide one's results leave while little else is under way.
  static float last_wave(const Heuristic& proposal) {
    return std::ceil(proposal.waves - kWhisker) / proposal.waves;
  }
  float of_tile(const Heuristic& proposal) const {
    int tile = 0;
    size_t written = 0;
    if (api.MatmulAlgoConfigGetAttribute(&proposal.algo, kAlgoTile, &tile, sizeof tile, &written))
      tile = 0;
    const bool narrow = std::ranges::find(kNarrow, tile) != std::end(kNarrow);
    return tile == kUneven ? kOfUneven : narrow ? 1.0f : kWide;
  }
};

Blas::Blas() : impl_(std::make_unique<Impl>()) {}
Blas::~Blas() = default;

void* Blas::room() noexcept {
  const Relaxed during;
  if (!impl_->room && cudaMalloc(&impl_->room, kRoom)) {
    cudaGetLastError();  // the next call must not meet it
    impl_->room = nullptr;
  }
  return impl_->room;
}

bool Blas::multiply(cudaStream_t stream, const Product& p) noexcept {
  const Relaxed during;  // also while the library loads a kernel at its first use
  try {
    if (!impl_->looked) impl_->look();
    return impl_->handle && impl_->multiply(stream, p);
  } catch (const std::exception&) {  // no memory for a plan
    return false;
  }
}

void Blas::report(char* text, size_t size) const noexcept {
  const std::lock_guard lock(impl_->mutex);
  std::snprintf(text, size, "%s", impl_->text.c_str());
}

}  // namespace ss::cuda
