#include "models/weight_arena.h"

#include <sys/mman.h>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

WeightArena::WeightArena(int64_t capacity)
    : mapped_bytes_(RoundUp(capacity, WeightArena::kAlignment) + kHugePage),
      mapped_(mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
  KVMIX_CHECK(mapped_ != MAP_FAILED)
      << "out of address space: " << mapped_bytes_ << " bytes";
  const auto start = reinterpret_cast<uintptr_t>(mapped_);
  next_ = static_cast<uint8_t*>(mapped_) +
          (RoundUp(static_cast<int64_t>(start), kHugePage) -
           static_cast<int64_t>(start));
  end_ = static_cast<uint8_t*>(mapped_) + mapped_bytes_;
  // Small arenas, which tests have, would only waste a huge page.
  if (capacity >= kHugePage) madvise(mapped_, mapped_bytes_, MADV_HUGEPAGE);
}

WeightArena::~WeightArena() { munmap(mapped_, mapped_bytes_); }

uint8_t* WeightArena::Take(int64_t bytes) {
  uint8_t* const taken = next_;
  const int64_t size = RoundUp(bytes, kAlignment);
  KVMIX_CHECK(size <= end_ - next_) << "the arena is too small";
  next_ += size;
  return taken;
}

}  // namespace kvmix
