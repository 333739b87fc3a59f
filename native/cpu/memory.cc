#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ss {
namespace {

constexpr size_t kHeader = 64;
constexpr size_t kLarge = 1 << 20;       // from here on: mapped, not from the heap
constexpr size_t kHugePage = 2 << 20;    // fewer page faults while loading, fewer TLB misses after
constexpr int64_t kCacheLimit = 512 << 20;
constexpr int64_t kReserve = 64 << 20;  // left to the rest of the process
static_assert(sizeof(Block) <= kHeader);

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Eight steps per doubling for small blocks, so that few sizes exist; large ones by 64 KiB.
size_t rounded(size_t bytes) {
  if (bytes >= kLarge) return round_up(bytes, 64 << 10);
  size_t step = 64;
  while (step * 16 < bytes) step *= 2;
  return round_up(std::max<size_t>(bytes, 1), step);
}

int64_t number_in(const char* path) {
  std::ifstream file(path);
  int64_t n = 0;
  return file >> n ? n : -1;
}

}  // namespace

int64_t Memory::available() {
  int64_t most = INT64_MAX;
  std::ifstream info("/proc/meminfo");
  for (std::string key, unit; info >> key;) {
    int64_t kib = 0;
    if (!(info >> kib)) break;
    std::getline(info, unit);
    if (key == "MemAvailable:") {
      most = kib * 1024;
      break;
    }
  }
  const int64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const int64_t current = number_in("/sys/fs/cgroup/memory.current");
  if (limit > 0 && current >= 0) most = std::min(most, std::max<int64_t>(0, limit - current));
  return most;
}

Block* Memory::map(size_t bytes) {
  const size_t whole = bytes + kHeader;
  void* base = nullptr;
  size_t mapped = 0;
  char* start = nullptr;
#if defined(__linux__)
  if (bytes >= kLarge) {
    // The overcommitting kernel would say yes to anything and kill the process later.
    if (static_cast<int64_t>(bytes) > available() - kReserve) return nullptr;
    mapped = whole + (bytes >= kHugePage ? kHugePage : 0);
    base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    start = static_cast<char*>(base);
    if (bytes >= kHugePage) {
      const size_t up = round_up(reinterpret_cast<size_t>(base) + kHeader, kHugePage);
      start = reinterpret_cast<char*>(up - kHeader);
      madvise(start + kHeader, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    }
  }
#endif
  if (!start) {
    base = std::aligned_alloc(64, round_up(whole, 64));
    if (!base) return nullptr;
    start = static_cast<char*>(base);
  }
  Block* block = new (start) Block{bytes, mapped, base, nullptr, &all_, all_.after};
  all_.after = block->after->before = block;
  return block;
}

void Memory::unmap(Block* block) {
#if defined(__linux__)
  if (block->mapped) {
    munmap(block->base, block->mapped);
    return;
  }
#endif
  std::free(block->base);
}

Block* Memory::take(Arena* arena, size_t bytes) {
  const auto found = arena->unused.lower_bound(bytes);
  if (found == arena->unused.end() || found->first > bytes + bytes / 4) return nullptr;
  Block* block = found->second;
  arena->unused.erase(found);
  use_.cached -= static_cast<int64_t>(block->bytes);
  return block;
}

Status Memory::alloc(size_t wanted, Arena* arena, void** out) {
  const auto refuse = [&](const char* why) {
    Status status{Status::out_of_memory};
    std::snprintf(status.text, sizeof status.text,
                  "out of memory: %.1f MiB were asked for, %.1f MiB are in use; %s",
                  double(wanted) / 1048576, double(use_.used) / 1048576, why);
    return status;
  };
  if (wanted > size_t{1} << 46) return refuse("no machine has that much");
  const size_t bytes = rounded(wanted);
  Block* block = take(arena, bytes);
  if (!block) {
    if (use_.limit && use_.used + use_.cached + static_cast<int64_t>(bytes) > use_.limit)
      return refuse("the limit that was set is reached");
    block = map(bytes);
    if (!block) return refuse("the system has no more");
  }
  block->arena = arena;
  arena->live++;
  use_.used += static_cast<int64_t>(block->bytes);
  use_.peak = std::max(use_.peak, use_.used);
  *out = reinterpret_cast<char*>(block) + kHeader;
  return {};
}

std::vector<Block*> Memory::evict(int64_t keep) {
  std::vector<Block*> out;
  while (use_.cached > keep && !own_.unused.empty()) {
    const auto last = std::prev(own_.unused.end());
    use_.cached -= static_cast<int64_t>(last->second->bytes);
    unlink(last->second);
    out.push_back(last->second);
    own_.unused.erase(last);
  }
  return out;
}

std::vector<Block*> Memory::free(void* memory) {
  Block* block = reinterpret_cast<Block*>(static_cast<char*>(memory) - kHeader);
  Arena* arena = block->arena;
  use_.used -= static_cast<int64_t>(block->bytes);
  use_.cached += static_cast<int64_t>(block->bytes);
  arena->live--;
  if (!arena->dropped) {
    arena->unused.emplace(block->bytes, block);
    return arena == &own_ ? evict(kCacheLimit) : std::vector<Block*>{};
  }
  own_.unused.emplace(block->bytes, block);
  if (arena->live == 0) delete arena;
  return evict(kCacheLimit);
}

std::vector<Block*> Memory::trim() { return evict(0); }

void Memory::drop(Arena* arena) {
  own_.unused.merge(arena->unused);
  arena->dropped = true;
  if (arena->live == 0) delete arena;
}

void Memory::unlink(Block* block) {
  block->before->after = block->after;
  block->after->before = block->before;
}

Memory::~Memory() {
  while (all_.after != &all_) {
    Block* block = all_.after;
    unlink(block);
    unmap(block);
  }
}

}  // namespace ss
