#include "attention/cache_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

constexpr size_t kAlignment = CacheMemory::kPageAlignment;

TEST(CacheMemoryTest, PagesAreAlignedAndApart) {
  CacheMemory memory;
  std::vector<std::pair<uint8_t*, size_t>> pages;
  for (size_t i = 0; i < 2000; ++i) {  // several regions
    const size_t bytes = 1000 + i % 7 * 10000;
    auto* page = static_cast<uint8_t*>(memory.allocate(bytes, kAlignment));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(page) % kAlignment, 0u);
    std::memset(page, static_cast<int>(i % 251), bytes);
    pages.push_back({page, bytes});
  }
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto [page, bytes] = pages[i];
    EXPECT_EQ(page[0], i % 251);
    EXPECT_EQ(page[bytes - 1], i % 251);
    memory.deallocate(page, bytes, kAlignment);
  }
}

TEST(CacheMemoryTest, TakesAPageLargerThanARegion) {
  CacheMemory memory;
  const size_t bytes = CacheMemory::kRegion + 12345;
  auto* page = static_cast<uint8_t*>(memory.allocate(bytes, kAlignment));
  page[0] = page[bytes - 1] = 1;
  memory.deallocate(page, bytes, kAlignment);
}

#ifndef __SANITIZE_ADDRESS__
TEST(CacheMemoryTest, AFreedPageIsTheNextOfItsSize) {
  CacheMemory memory;
  void* a = memory.allocate(3000, kAlignment);
  void* b = memory.allocate(3000, kAlignment);
  memory.deallocate(a, 3000, kAlignment);
  EXPECT_NE(memory.allocate(5000, kAlignment), a);
  EXPECT_EQ(memory.allocate(3000, kAlignment), a);
  EXPECT_NE(memory.allocate(3000, kAlignment), b);
}

TEST(CacheMemoryTest, UnusedRoomOfARegionIsNotResident) {
  CacheMemory memory;
  // Fills the small region, so that the next page begins a large one.
  ASSERT_NE(memory.allocate(CacheMemory::kSmallRegion, kAlignment), nullptr);
  auto* page = static_cast<char*>(memory.allocate(4096, kAlignment));
  page[0] = 1;
  const size_t far = size_t{8} << 20;  // beyond the huge page just touched
  unsigned char resident[1];
  auto* address = reinterpret_cast<char*>(
      (reinterpret_cast<uintptr_t>(page) + far) / 4096 * 4096);
  ASSERT_EQ(mincore(address, 4096, resident), 0);
  EXPECT_EQ(resident[0] & 1, 0);
}
#endif

}  // namespace
}  // namespace kvmix
