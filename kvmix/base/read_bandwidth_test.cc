#include "kvmix/base/read_bandwidth.h"

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

TEST(ReadBandwidthTest, IsMeasuredForEveryNumberOfThreads) {
  for (int num_threads : {1, 2, 3}) {
    ThreadPool threads(num_threads);
    ASSERT_OK_AND_ASSIGN(const double rate,
                         MeasureReadBandwidth(threads, 1 << 20));
    EXPECT_GT(rate, 0);
    // No machine reads 100 TB a second: nothing was read.
    EXPECT_LT(rate, 1e14);
  }
}

}  // namespace
}  // namespace kvmix
