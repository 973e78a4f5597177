// The stand-in for the CUDA runtime: what it refuses, streams, events, graphs.
#include <cuda_runtime.h>

#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/device_vector.h"
#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/example_kernels.h"

namespace kvmix {
namespace {

class CudartTest : public testing::Test {
 protected:
  void TearDown() override { emu::options() = before_; }
  const emu::Options before_ = emu::options();
};

TEST_F(CudartTest, CopyPastAnAllocationOrInTheWrongDirectionFails) {
  DeviceVector<float> d(4);
  float host[8] = {};
  EXPECT_EQ(cudaMemcpy(host, d.data(), 20, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, d.data(), 16, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host, 0, 16), cudaErrorInvalidValue);
}

TEST_F(CudartTest, BadLaunchesAreRefused) {
  DeviceVector<float> d(4);
  EXPECT_EQ(RunFill(d.data(), 0, 32, 16), cudaErrorInvalidConfiguration);
  EXPECT_EQ(RunFill(d.data(), 1, 2048, 16), cudaErrorInvalidConfiguration);
}

// A grid may be long in x alone.
TEST_F(CudartTest, LaunchesBeyondADevicesLimitsAreRefused) {
  DeviceVector<float> d(std::vector<float>(1, 0.0f));
  const auto run = [&](dim3 grid, dim3 block) {
    return RunFill(d.data(), grid, block, 16);
  };
  for (const dim3 grid : {dim3(1, 65536), dim3(1, 1, 65536), dim3(1u << 31),
                          dim3(1, 0), dim3(1, 1, 0)})
    EXPECT_EQ(run(grid, 1), cudaErrorInvalidConfiguration);
  for (const dim3 block : {dim3(1025), dim3(1, 1025), dim3(1, 1, 65),
                           dim3(32, 33), dim3(1u << 31, 2), dim3(1, 0)})
    EXPECT_EQ(run(1, block), cudaErrorInvalidConfiguration);
  EXPECT_EQ(d.ToHost()[0], 0);  // nothing ran
  EXPECT_EQ(run(65536, 1), cudaSuccess);
  EXPECT_EQ(run(1, dim3(8, 2, 64)), cudaSuccess);
  EXPECT_EQ(d.ToHost()[0], 1);
}

TEST_F(CudartTest, MoreThan48KiBOfSharedMemoryMustBeAskedFor) {
  DeviceVector<float> d(4);
  EXPECT_EQ(RunFill(d.data(), 1, 32, 50000), cudaErrorInvalidValue);
  EXPECT_EQ(AllowFill(200000), cudaErrorInvalidValue);
  EXPECT_EQ(AllowFill(50000), cudaSuccess);
  cudaGetLastError();
  EXPECT_EQ(RunFill(d.data(), 1, 32, 50000), cudaSuccess);
  EXPECT_EQ(d.ToHost()[0], 1);
  AllowFill(0);  // for the next repetition
}

TEST_F(CudartTest, FreeingTwiceFails) {
  void* p = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
}

TEST_F(CudartTest, MemoryRunsOut) {
  size_t free_before = 0, free_after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  emu::options().device_bytes = total - free_before + 1000;
  void *p = nullptr, *q = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 600), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&q, 600), cudaErrorMemoryAllocation);
  EXPECT_EQ(q, nullptr);
  EXPECT_STREQ(cudaGetErrorString(cudaGetLastError()), "out of memory");
  ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  EXPECT_EQ(free_after, 400u);
  cudaFree(p);
}

// A copy on stream b of what a kernel on stream a computes.
float CopyOfOtherStream(bool with_event, bool with_sync) {
  DeviceVector<float> d(std::vector<float>(32, 0.0f));
  void* pinned = nullptr;
  cudaMallocHost(&pinned, 128);
  float* host = static_cast<float*>(pinned);
  host[5] = -1;
  cudaStream_t a, b;
  cudaStreamCreate(&a);
  cudaStreamCreate(&b);
  cudaEvent_t event;
  cudaEventCreate(&event);
  RunAddOne(d.data(), 32, a);
  if (with_event) {
    cudaEventRecord(event, a);
    cudaStreamWaitEvent(b, event, 0);
  }
  cudaMemcpyAsync(host, d.data(), 128, cudaMemcpyDeviceToHost, b);
  if (with_sync) cudaStreamSynchronize(b);
  const float seen = host[5];
  cudaDeviceSynchronize();
  cudaEventDestroy(event);
  cudaStreamDestroy(a);
  cudaStreamDestroy(b);
  cudaFreeHost(pinned);
  return seen;
}

TEST_F(CudartTest, LazyStreamsShowMissingSynchronisation) {
  emu::options().lazy_streams = true;
  EXPECT_EQ(CopyOfOtherStream(true, true), 1);
  EXPECT_EQ(CopyOfOtherStream(false, true), 0);   // no event
  EXPECT_EQ(CopyOfOtherStream(true, false), -1);  // no wait
}

TEST_F(CudartTest, GraphRunsWhatWasCaptured) {
  DeviceVector<float> d(std::vector<float>(32, 0.0f));
  cudaStream_t s;
  ASSERT_EQ(cudaStreamCreate(&s), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal),
            cudaSuccess);
  RunAddOne(d.data(), 32, s);
  RunAddOne(d.data(), 32, s);
  EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(s, &graph), cudaSuccess);
  cudaGetLastError();
  EXPECT_EQ(d.ToHost()[3], 0);  // captured, not run
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, s), cudaSuccess);
  cudaStreamSynchronize(s);
  EXPECT_EQ(d.ToHost()[3], 6);
  cudaGraphExecDestroy(exec);
  cudaStreamDestroy(s);
}

}  // namespace
}  // namespace kvmix
