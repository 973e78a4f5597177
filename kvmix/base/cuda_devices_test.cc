#include "kvmix/base/cuda_devices.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix {
namespace {

TEST(CudaDevicesTest, ToolkitIsTheOneTheRepositoryRuleFound) {
  const std::string found = KVMIX_CUDA_VERSION;  // from cuda_configure.bzl
  EXPECT_EQ(CudaToolkit(), found);
}

TEST(CudaDevicesTest, WithoutToolkitThereIsNoDevice) {
  if (!CudaToolkit().empty()) GTEST_SKIP() << "built with a toolkit";
  EXPECT_TRUE(CudaDevices().empty());
}

TEST(CudaDevicesTest, DevicesHaveNameMemoryAndArchitecture) {
  for (const std::string& device : CudaDevices()) {
    EXPECT_THAT(device, ::testing::ContainsRegex(".+, [0-9]+ GiB, sm_[0-9]+"));
  }
}

}  // namespace
}  // namespace kvmix
