// A memory resource that counts what is allocated, and refuses more than
// `limit` bytes. testonly.
#pragma once

#include <cstdint>
#include <limits>
#include <memory_resource>
#include <new>

namespace kvmix::testing {

class CountingResource final : public std::pmr::memory_resource {
 public:
  int64_t allocated = 0;
  int64_t limit = std::numeric_limits<int64_t>::max();

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    if (allocated + static_cast<int64_t>(bytes) > limit) throw std::bad_alloc();
    allocated += bytes;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, size_t bytes, size_t alignment) override {
    allocated -= bytes;
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }
};

}  // namespace kvmix::testing
