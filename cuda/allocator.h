// Memory of one CUDA device. A freed block is kept and handed out again at once: the queue runs in
// order, so what used it before is always done before what uses it next. That also makes alloc()
// independent of the stream, which another thread feeds and may be capturing.
#pragma once
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "failure.h"

namespace ss::cuda {

// Blocks that may follow one another: the device's own, or those of one captured graph.
struct Arena {
  std::multimap<size_t, void*> unused;  // by size
  bool dropped = false;                 // the graph is gone: what comes back is the device's
};

class Allocator {
 public:
  explicit Allocator(Failure& failure) : failure_(failure) {}
  ~Allocator();  // once nothing uses the memory any more
  // out_of_memory may still be met by release(trim()) and a second try.
  Status alloc(size_t bytes, const std::shared_ptr<Arena>& arena, void** out);
  void free(void* memory);
  void drop(Arena& arena);  // its unused blocks go over to the device
  // Forgets what is cached. The caller releases it once the queue is past this point.
  std::vector<void*> trim();
  static void release(const std::vector<void*>& blocks);

  const std::shared_ptr<Arena>& own() const { return own_; }
  MemoryUse use() const { return use_; }
  void set_limit(int64_t bytes) { use_.limit = bytes; }

 private:
  struct Block {
    size_t bytes;
    std::shared_ptr<Arena> arena;
  };
  Failure& failure_;
  const std::shared_ptr<Arena> own_ = std::make_shared<Arena>();
  std::unordered_map<void*, Block> blocks_;  // in use or not
  MemoryUse use_{};
};

}  // namespace ss::cuda
