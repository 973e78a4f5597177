#include "kvmix/base/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <thread>
#include <vector>

#include "kvmix/base/status_matchers.h"

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

// Loops of another length each: a thread that comes late to one must not take
// a task of the next with the last one's body or length.
TEST_P(ThreadPoolTest, LateThreadsTakePartInTheRightLoop) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20000; ++round) {
    const int64_t n = 2 + round * 7 % 23;
    std::atomic<int64_t> sum = 0;
    std::atomic<bool> outside = false;
    pool.ParallelFor(n, [&](int64_t task, int) {
      if (task >= n) outside = true;
      sum += task + 1;
    });
    ASSERT_FALSE(outside);
    ASSERT_EQ(sum, n * (n + 1) / 2) << round;
  }
}

// Threads that slept because nothing came take part again.
TEST_P(ThreadPoolTest, SleepersWakeUp) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(20 * ThreadPool::kSpinTime);
    std::atomic<int> arrived = 0;
    // No task ends before every thread has one.
    pool.ParallelFor(GetParam(), [&](int64_t, int) {
      ++arrived;
      while (arrived < GetParam()) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, GetParam());
  }
}

// Waiting threads must not eat the processor for longer than they may spin.
TEST_P(ThreadPoolTest, IdleThreadsSleep) {
  ThreadPool pool(GetParam());
  pool.ParallelFor(GetParam(), [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();  // of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double seconds =
      static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.1);  // one spinning thread would take 0.2
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8),
                         ::testing::PrintToStringParamName());

TEST(ThreadPoolSizeTest, ZeroMeansOneForEachHardwareThread) {
  ThreadPool pool(0);
  EXPECT_GE(pool.num_threads(), 1);
}

// In a thread of its own, so that this test's other threads stay free.
TEST(ThreadPoolPinTest, EveryThreadHasACpuOfItsOwn) {
  std::thread([] {
    const int cpus = static_cast<int>(std::thread::hardware_concurrency());
    ThreadPool pool(cpus);
    ASSERT_OK(pool.Pin());
    std::vector<std::atomic<int>> threads_of(CPU_SETSIZE);
    std::atomic<int> waiting = 0;
    pool.ParallelFor(cpus, [&](int64_t, int) {
      // Each thread takes one task.
      ++waiting;
      while (waiting < cpus) std::this_thread::yield();
      cpu_set_t set;
      ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
      EXPECT_EQ(CPU_COUNT(&set), 1);
      ++threads_of[sched_getcpu()];
    });
    for (const std::atomic<int>& count : threads_of) EXPECT_LE(count, 1);
  }).join();
}

TEST(ThreadPoolPinTest, MoreThreadsThanCpusAreRefused) {
  std::thread([] {
    ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()) + 1);
    EXPECT_THAT(pool.Pin(),
                testing::StatusIs(absl::StatusCode::kFailedPrecondition,
                                  ::testing::HasSubstr("use fewer threads")));
  }).join();
}

}  // namespace
}  // namespace kvmix
