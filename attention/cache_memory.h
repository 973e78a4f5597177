// CacheMemory: memory for the pages of one KV cache, in huge pages.
//
// Decode attention reads the whole cache once a token, so its speed is that of
// memory, and with 4 KiB pages a good part of that is address translation.
// Pages of the cache come in a few sizes: they are cut from large regions one
// after another, and a freed one is the next to be given out in its size. All
// else (alignment below kPageAlignment: page tables) is left to new and delete.
// A region becomes resident as it is used, 2 MiB at a time; a cache that fits
// kSmallRegion never asks for huge pages. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <unordered_map>
#include <vector>

namespace kvmix {

class CacheMemory final : public std::pmr::memory_resource {
 public:
  static constexpr size_t kPageAlignment = 64;
  static constexpr size_t kSmallRegion = size_t{1} << 20;
  static constexpr size_t kRegion = size_t{1} << 26;

  CacheMemory() = default;
  ~CacheMemory() override;
  CacheMemory(const CacheMemory&) = delete;
  CacheMemory& operator=(const CacheMemory&) = delete;

 private:
  struct Region {
    char* mapped;  // what munmap takes
    size_t size;
  };

  // Throw std::bad_alloc.
  void* do_allocate(size_t bytes, size_t alignment) override;
  void AddRegion(size_t bytes);
  void do_deallocate(void* p, size_t bytes, size_t alignment) override;
  bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }

  std::vector<Region> regions_;
  char* next_ = nullptr;  // the unused rest of the last region
  char* end_ = nullptr;
  std::unordered_map<size_t, std::vector<void*>> free_;  // by size
};

}  // namespace kvmix
