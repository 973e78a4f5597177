#include "attention/cache_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace kvmix {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// With AddressSanitizer every page is an allocation of its own, so that it sees
// one used after it was freed, or beyond its end.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kRegions = false;
#else
constexpr bool kRegions = true;
#endif

bool FromRegions(size_t alignment) {
  return kRegions && alignment == CacheMemory::kPageAlignment;
}

}  // namespace

CacheMemory::~CacheMemory() {
  for (const Region& region : regions_) munmap(region.mapped, region.size);
}

void CacheMemory::AddRegion(size_t bytes) {
  const bool huge = !regions_.empty() || bytes > kSmallRegion;
  const size_t room = std::max(bytes, huge ? kRegion : kSmallRegion);
  const size_t size = RoundUp(room, 4096) + (huge ? kHugePage : 0);
  regions_.reserve(regions_.size() + 1);
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(mapped);
  regions_.push_back({begin, size});
  if (huge) {
    begin += kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage;
    // Advice alone: without it everything works, more slowly.
    madvise(begin, room / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
  next_ = begin;
  end_ = begin + room;
}

void* CacheMemory::do_allocate(size_t bytes, size_t alignment) {
  if (!FromRegions(alignment))
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  const size_t size = RoundUp(bytes, kPageAlignment);
  std::vector<void*>& free = free_[size];
  if (!free.empty()) {
    void* page = free.back();
    free.pop_back();
    return page;
  }
  if (static_cast<size_t>(end_ - next_) < size) AddRegion(size);
  void* page = next_;
  next_ += size;
  return page;
}

void CacheMemory::do_deallocate(void* p, size_t bytes, size_t alignment) {
  if (!FromRegions(alignment)) {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    return;
  }
  free_[RoundUp(bytes, kPageAlignment)].push_back(p);
}

}  // namespace kvmix
