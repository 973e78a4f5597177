#include "kvmix/base/device_memory.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"
#include "tools/cuda_emulator/emulator.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;

TEST(DeviceMemoryTest, HoldsWhatWasUploaded) {
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(12, "numbers");
  ASSERT_OK(memory.status());
  const std::vector<int> numbers = {1, 2, 3};
  ASSERT_TRUE(memory->Upload(numbers.data(), 12).ok());
  const int other = 9;
  ASSERT_TRUE(memory->Upload(&other, 4, 8).ok());
  std::vector<int> read(3);
  ASSERT_EQ(cudaMemcpy(read.data(), memory->data(), 12, cudaMemcpyDeviceToHost),
            cudaSuccess);
  EXPECT_EQ(read, std::vector<int>({1, 2, 9}));
}

TEST(DeviceMemoryTest, IsFreedOnceWhenMovedFrom) {
  size_t before = 0, after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
  {
    DeviceMemory memory = *DeviceMemory::Allocate(1000, "numbers");
    DeviceMemory moved = std::move(memory);
    memory = *DeviceMemory::Allocate(500, "more");
    EXPECT_EQ(moved.bytes(), 1000);
    cudaMemGetInfo(&after, &total);
    EXPECT_EQ(before - after, 1500u);
  }
  cudaMemGetInfo(&after, &total);
  EXPECT_EQ(before, after);
}

TEST(DeviceMemoryTest, ArraysOfAnArenaAreAlignedAndFillWhatIsAllocated) {
  char* bytes = nullptr;
  double* numbers = nullptr;
  const absl::StatusOr<DeviceMemory> memory = DeviceMemory::AllocateFor(
      [&](DeviceArena& arena) {
        bytes = arena.Take<char>(257);
        numbers = arena.Take<double>(3);
      },
      "arrays");
  ASSERT_OK(memory.status());
  EXPECT_EQ(memory->bytes(), 512 + 24);
  EXPECT_EQ(bytes, memory->as<char>());
  EXPECT_EQ(reinterpret_cast<char*>(numbers), bytes + 512);
}

TEST(PinnedMemoryTest, StaysUntilMoreIsAskedFor) {
  PinnedMemory memory;
  EXPECT_EQ(memory.as<int>(), nullptr);
  ASSERT_OK(memory.Reserve(12, "numbers"));
  int* const first = memory.as<int>();
  first[2] = 7;
  ASSERT_OK(memory.Reserve(8, "numbers"));
  EXPECT_EQ(memory.as<int>(), first);
  EXPECT_EQ(memory.as<int>()[2], 7);
  ASSERT_OK(memory.Reserve(4000, "numbers"));
  memory.as<int>()[999] = 1;  // asan: there is room
}

TEST(DeviceMemoryTest, FullDeviceIsAnErrorThatNamesTheBytes) {
  const emu::Options options = emu::options();
  emu::options().device_bytes = 4096;
  const absl::StatusOr<DeviceMemory> memory =
      DeviceMemory::Allocate(3 << 20, "the KV cache of 8 sequences");
  emu::options() = options;
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(memory.status().message()),
              HasSubstr("the KV cache of 8 sequences: 3.00 MiB (3145728 bytes) "
                        "do not fit the CUDA device"));
}

TEST(DeviceMemoryTest, ErrorsAreToldOnce) {
  const absl::Status status =
      CudaStatus(cudaMemset(nullptr, 0, 4), "clear the counts");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("clear the counts: CUDA says: invalid argument"));
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace kvmix
