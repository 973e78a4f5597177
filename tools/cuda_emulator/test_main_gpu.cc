// main() of a test that runs on a device. Without one, a single skipped test
// says why.
#include <cuda_runtime.h>

#include <string>

#include "gtest/gtest.h"

namespace {

std::string* MissingDevice() {
  static std::string reason;
  return &reason;
}

class DeviceTest : public testing::Test {
  void TestBody() override { GTEST_SKIP() << *MissingDevice(); }
};

// An error that a kernel left behind belongs to the test that launched it.
class DeviceListener final : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    const cudaError_t error = cudaDeviceSynchronize();
    EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
    cudaGetLastError();
  }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) {
    testing::UnitTest::GetInstance()->listeners().Append(new DeviceListener);
    return RUN_ALL_TESTS();
  }
  *MissingDevice() =
      std::string("no CUDA device: ") +
      (error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  testing::RegisterTest("CudaDevice", "IsPresent", nullptr, nullptr, __FILE__,
                        __LINE__,
                        []() -> testing::Test* { return new DeviceTest; });
  GTEST_FLAG_SET(filter, "CudaDevice.IsPresent");
  return RUN_ALL_TESTS();
}
