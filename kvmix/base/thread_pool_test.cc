#include "kvmix/base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEveryTaskOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (int64_t n : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(n);
    pool.ParallelFor(n, [&](int64_t task, int thread) {
      ASSERT_GE(thread, 0);
      ASSERT_LT(thread, GetParam());
      ++runs[task];
    });
    for (const std::atomic<int>& run : runs) ASSERT_EQ(run, 1);
  }
}

// Scratch memory may be indexed by thread: no two tasks of a thread overlap.
TEST_P(ThreadPoolTest, AThreadRunsOneTaskAtATime) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> busy(GetParam());
  std::atomic<bool> overlap = false;
  pool.ParallelFor(2000, [&](int64_t, int thread) {
    if (++busy[thread] != 1) overlap = true;
    --busy[thread];
  });
  EXPECT_FALSE(overlap);
}

// Every thread is held up in one task, the caller's the shortest.
TEST_P(ThreadPoolTest, ReturnsWhenTheLastTaskIsDone) {
  ThreadPool pool(GetParam());
  std::atomic<int> done = 0;
  pool.ParallelFor(GetParam(), [&](int64_t, int thread) {
    std::this_thread::sleep_for(
        std::chrono::milliseconds(thread == 0 ? 1 : 30));
    ++done;
  });
  EXPECT_EQ(done, GetParam());
}

// What tasks write is seen by the caller and by the next loop's tasks.
TEST_P(ThreadPoolTest, LoopsFollowEachOther) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> x(64, 0);
  for (int round = 0; round < 3000; ++round) {
    // Another thread may run task i in the next round.
    pool.ParallelFor(64, [&](int64_t i, int) { x[i] += i; });
  }
  for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(x[i], 3000 * i);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8),
                         ::testing::PrintToStringParamName());

TEST(ThreadPoolSizeTest, ZeroMeansOneForEachHardwareThread) {
  ThreadPool pool(0);
  EXPECT_GE(pool.num_threads(), 1);
}

}  // namespace
}  // namespace kvmix
