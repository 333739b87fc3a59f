// Devices, the memory that tensors own, and the handles that JavaScript holds. Reference counts
// are plain: all of this lives on the thread of one Node environment.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backend.h"

namespace ss {

struct Device {
  std::unique_ptr<Backend> backend;  // gone once the environment is torn down
  std::vector<const Kernel*> kernels;
  int64_t tensors = 0;  // handles that JavaScript holds
  // Bytes of memory that weigh as one of V8's own heap.
  int64_t lightness = 1;
  // While a graph is captured: what it uses but did not make, which must live as long as it does.
  bool capturing = false;
  std::vector<std::shared_ptr<struct Storage>> captured;
};

struct Storage {
  Storage(std::shared_ptr<Device> device, void* data, size_t bytes)
      : device(std::move(device)), data(data), bytes(bytes), in_graph(this->device->capturing) {}
  Storage(const Storage&) = delete;
  ~Storage() {
    if (device->backend) device->backend->free(data);
  }
  const std::shared_ptr<Device> device;
  void* const data;
  const size_t bytes;
  const bool in_graph;  // made while capturing: its memory belongs to the graph
};

struct Handle {
  static constexpr uint64_t kMagic = 0x53535f54454e5352;
  uint64_t magic = kMagic;
  View view{};
  std::shared_ptr<Storage> storage;  // empty once disposed
};

struct GraphHandle {
  static constexpr uint64_t kMagic = 0x53535f4752415048;
  uint64_t magic = kMagic;
  std::shared_ptr<Device> device;
  void* graph = nullptr;
  std::vector<std::shared_ptr<Storage>> uses{};
};

// Elements of a shape, or -1 when a size is negative or the product does not fit.
int64_t elements(const std::vector<int64_t>& shape);

// A view of `storage`, or an error text: rank, sizes and bounds are checked.
const char* make_view(const Storage& storage, DType dtype, const std::vector<int64_t>& shape,
                      int64_t offset, int64_t stride, View& out);

}  // namespace ss
