// A memory resource whose allocations each end at a page that may not be
// touched, so that reading or writing beyond one ends the test, in code that no
// sanitizer instruments, too. testonly.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <memory_resource>
#include <new>

namespace kvmix::testing {

class GuardedMemory final : public std::pmr::memory_resource {
 private:
  static constexpr size_t kPage = 4096;
  static size_t Pages(size_t bytes) {
    return (bytes + kPage - 1) / kPage * kPage;
  }

  // Page, what was asked for at its end, page. The end comes first: where
  // `bytes` is no multiple of `alignment`, the beginning is not aligned.
  void* do_allocate(size_t bytes, size_t) override {
    const size_t size = Pages(bytes);
    void* const mapped = mmap(nullptr, size + 2 * kPage, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<uint8_t*>(mapped) + kPage;
    if (mprotect(begin, size, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    return begin + size - bytes;
  }
  void do_deallocate(void* p, size_t bytes, size_t) override {
    const size_t size = Pages(bytes);
    munmap(static_cast<uint8_t*>(p) + bytes - size - kPage, size + 2 * kPage);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }
};

}  // namespace kvmix::testing
