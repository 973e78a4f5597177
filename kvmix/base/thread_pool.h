// A fixed set of threads for loops whose result must not depend on how many
// there are.
//
// ParallelFor cuts [0, n) into tasks that the caller numbers; which thread runs
// a task is not defined, so a task may write only what belongs to it, and sums
// over tasks are the caller's to make in order.
//
// A decode step makes hundreds of loops of a few microseconds each, so threads
// that wait first spin for kSpinTime and only then sleep: a loop that follows
// the last one soon starts without a system call. ParallelFor waits for tasks,
// not for threads: a thread that the system does not run in time takes part in
// no task and holds up nobody.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace kvmix {

class ThreadPool {
 public:
  using Body = absl::FunctionRef<void(int64_t task, int thread)>;
  static constexpr std::chrono::microseconds kSpinTime{50};

  // num_threads counts the calling thread; 0 means one for each hardware
  // thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Keeps every thread, the calling one included, on a CPU of its own, of those
  // that the process was allowed when it first asked. Errors: fewer of them
  // than threads.
  absl::Status Pin();

  // Calls body(task, thread) for every task in [0, num_tasks) and returns when
  // all are done. thread is in [0, num_threads()): an index for scratch memory.
  // Allocates nothing. Not reentrant; one caller at a time. num_tasks is at
  // most 2^31.
  void ParallelFor(int64_t num_tasks, Body body);

 private:
  // Where threads sleep until something they wait for is so.
  class Bed {
   public:
    // Spins while `spin` is left, then sleeps, until `ready()` holds.
    template <class Ready>
    void WaitFor(std::chrono::microseconds spin, const Ready& ready);
    // After what `ready` reads has changed (sequentially consistent).
    void Wake();

   private:
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
  };

  void WorkerLoop(int thread);
  void RunTasks(int thread);

  const std::chrono::microseconds spin_;
  // Upper half: the loop's number; lower half: its next task. A thread that
  // raises it by 1 has taken that task of that loop.
  std::atomic<uint64_t> ticket_{0};
  // Of the loop that ticket_ names; meaningful to who has taken a task of it.
  std::atomic<int64_t> num_tasks_{0};
  std::atomic<const Body*> body_{nullptr};
  std::atomic<int64_t> num_done_{0};
  std::atomic<bool> stop_{false};
  Bed workers_bed_, caller_bed_;
  std::vector<std::thread> workers_;
};

}  // namespace kvmix
