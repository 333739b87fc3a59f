// Memory of one CPU device. A freed block is kept and handed out again at once: the queue runs in
// order, so what used it before is always done before what uses it next.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "../backend.h"

namespace ss {

struct Arena;

struct Block {  // stands in the 64 bytes before the memory it describes
  size_t bytes;
  size_t mapped;  // whole mapping, this header included; 0: from the heap
  void* base;
  Arena* arena;
  Block *before, *after;  // all blocks of a Memory, in a ring
};

// Blocks that may follow one another: the device's own, or those of one captured graph.
struct Arena {
  std::multimap<size_t, Block*> unused;
  int64_t live = 0;
  bool dropped = false;
};

class Memory {
 public:
  ~Memory();  // gives back what was never freed, too: nothing is queued any more
  Status alloc(size_t bytes, Arena* arena, void** out);
  // Blocks that fell out of the cache: the caller unmaps them once the queue is past this point.
  std::vector<Block*> free(void* memory);
  std::vector<Block*> trim();
  void drop(Arena* arena);  // its blocks go over to the device
  MemoryUse use() const { return use_; }
  void set_limit(int64_t bytes) { use_.limit = bytes; }
  Arena* own() { return &own_; }

  static void unmap(Block* block);  // of a block that free() or trim() gave away
  static int64_t available();  // bytes that the system could still give

 private:
  Block* take(Arena* arena, size_t bytes);
  Block* map(size_t bytes);
  std::vector<Block*> evict(int64_t keep);

  void unlink(Block* block);

  Arena own_;
  Block all_{0, 0, nullptr, nullptr, &all_, &all_};
  MemoryUse use_{};
};

}  // namespace ss
