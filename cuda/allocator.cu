#include "allocator.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

namespace ss::cuda {
namespace {

constexpr size_t kLarge = 1 << 20;

// Eight steps per doubling for small blocks, so that few sizes exist; large ones by 2 MiB, a page.
size_t rounded(size_t bytes) {
  size_t step = kLarge * 2;
  if (bytes < kLarge)
    for (step = 256; step * 16 < bytes;) step *= 2;
  return std::max<size_t>(1, (bytes + step - 1) / step) * step;
}

}  // namespace

Status Allocator::alloc(size_t wanted, const std::shared_ptr<Arena>& arena, void** out) {
  const auto refuse = [&](const char* why) {
    Status status{Status::out_of_memory};
    std::snprintf(status.text, sizeof status.text,
                  "out of memory: %.1f MiB were asked for, %.1f MiB are in use; %s",
                  double(wanted) / 1048576, double(use_.used) / 1048576, why);
    return status;
  };
  if (wanted > size_t{1} << 46) return refuse("no card has that much");
  size_t bytes = rounded(wanted);
  const auto take = [&](Arena& from) {
    const auto found = from.unused.lower_bound(bytes);
    if (found == from.unused.end() || found->first > bytes + bytes / 4) return false;
    bytes = found->first;
    *out = found->second;
    from.unused.erase(found);
    use_.cached -= static_cast<int64_t>(bytes);
    return true;
  };
  // A graph runs after all that is queued now: what the device has unused may become the graph's.
  if (!take(*arena) && !take(*own_)) {
    if (use_.limit && use_.used + use_.cached + static_cast<int64_t>(bytes) > use_.limit)
      return refuse("the limit that was set is reached");
    if (const cudaError_t error = cudaMalloc(out, bytes)) {
      cudaGetLastError();  // the next call must not meet it
      if (error != cudaErrorMemoryAllocation) failure_.note(error, "an allocation");
      return failure_.lost() ? failure_.take() : refuse(cudaGetErrorString(error));
    }
  }
  blocks_[*out] = {bytes, arena};
  use_.used += static_cast<int64_t>(bytes);
  use_.peak = std::max(use_.peak, use_.used);
  return {};
}

void Allocator::free(void* memory) {
  Block& block = blocks_.at(memory);
  if (block.arena->dropped) block.arena = own_;
  block.arena->unused.emplace(block.bytes, memory);
  use_.used -= static_cast<int64_t>(block.bytes);
  use_.cached += static_cast<int64_t>(block.bytes);
}

void Allocator::drop(Arena& arena) {
  own_->unused.merge(arena.unused);
  arena.dropped = true;
}

std::vector<void*> Allocator::trim() {
  std::vector<void*> out;
  for (const auto& [bytes, memory] : own_->unused) {
    out.push_back(memory);
    blocks_.erase(memory);
    use_.cached -= static_cast<int64_t>(bytes);
  }
  own_->unused.clear();
  return out;
}

void Allocator::release(const std::vector<void*>& blocks) {
  for (void* memory : blocks) cudaFree(memory);
}

Allocator::~Allocator() {
  for (const auto& [memory, block] : blocks_) cudaFree(memory);
}

}  // namespace ss::cuda
