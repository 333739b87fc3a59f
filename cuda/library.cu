#include "library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>

namespace ss::cuda {
namespace {

void add_matches(const std::string& pattern, std::vector<std::string>& paths) {
  glob_t found{};
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc; i++) paths.emplace_back(found.gl_pathv[i]);
  globfree(&found);
}

}  // namespace

std::vector<std::string> library_places(const char* variable, const std::vector<const char*>& names,
                                        const char* word) {
  if (const char* path = std::getenv(variable)) return {path};
  std::vector<std::string> folders;
  for (const char* root_of : {"CUDA_PATH", "CUDA_HOME"})
    if (const char* root = std::getenv(root_of))
      for (const char* lib : {"/lib64", "/lib", "/targets/*/lib"})
        folders.push_back(root + std::string(lib));
  for (const char* lib : {"/lib64", "/lib", "/targets/*/lib"})
    folders.push_back(std::string("/usr/local/cuda") + lib);
  for (const char* root_of : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* root = std::getenv(root_of))
      folders.push_back(root + std::string("/lib/python3*/site-packages/nvidia/*/lib"));
  // Beside this module, and in npm packages of the folders above it.
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&add_matches), &self) && self.dli_fname) {
    std::string folder = self.dli_fname;
    for (bool first = true; folder.rfind('/') != std::string::npos; first = false) {
      folder.resize(folder.rfind('/'));
      if (first) folders.push_back(folder);
      for (const char* package : {"*", "@*/*"})
        folders.push_back(folder + "/node_modules/" + package + word + "*/lib");
    }
  }
  std::vector<std::string> paths(names.begin(), names.end());  // the loader's own search
  for (const std::string& folder : folders)
    for (const char* name : names) add_matches(folder + "/" + name, paths);
  return paths;
}

std::string no_library(const char* variable, const std::vector<const char*>& names,
                       const char* package, const std::string& reasons) {
  std::string all;
  for (const char* name : names) all += (all.empty() ? "" : " or ") + std::string(name);
  return "no " + all +
         " that works was found on the loader's path, in CUDA_PATH, /usr/local/cuda, VIRTUAL_ENV or "
         "npm's folders. Install CUDA's " +
         package + ", or set " + variable + " to the library's path" +
         (reasons.empty() ? "." : ". Tried:" + reasons);
}

}  // namespace ss::cuda
