#include "modules.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "cpu/device.h"

namespace ss {
namespace {

constexpr const char* kModuleFile = "libselective_scan_cuda.so";

// The folder that this addon was loaded from.
std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&open_device), &info) || !info.dli_fname) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

Backend* open_module(const std::string& path, int index, std::string& why) {
  // Never closed: kernels of it may run until the process ends.
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!module) {
    why += "\n  " + std::string(dlerror());
    return nullptr;
  }
  const auto open = reinterpret_cast<OpenModule>(dlsym(module, "selective_scan_open"));
  if (!open) {
    why += "\n  " + path + ": no device module (it exports no selective_scan_open)";
    return nullptr;
  }
  Backend* backend = nullptr;
  if (const char* reason = open(kAbi, index, &backend)) {
    why += "\n  " + path + ": " + reason;
    return nullptr;
  }
  return backend;
}

}  // namespace

void stay_loaded() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&open_device), &info) && info.dli_fname)
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

Backend* open_device(const std::string& kind, int index, std::string& why) {
  if (kind == "cpu" && index == 0) return open_cpu();
  if (kind != "cuda") {
    why = "no such device";
    return nullptr;
  }
  std::vector<std::string> paths;
  if (const char* path = std::getenv("SELECTIVE_SCAN_CUDA_MODULE"))
    paths = {path};
  else
    paths = {own_folder() + "/" + kModuleFile};
  why = "the CUDA module could not be opened; tried:";
  for (const std::string& path : paths)
    if (Backend* backend = open_module(path, index, why)) return backend;
  return nullptr;
}

}  // namespace ss
