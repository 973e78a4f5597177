// A fixed set of threads for loops whose result must not depend on how many
// there are.
//
// ParallelFor cuts [0, n) into tasks that the caller numbers; which thread runs
// a task is not defined, so a task may write only what belongs to it, and sums
// over tasks are the caller's to make in order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvmix {

class ThreadPool {
 public:
  // num_threads counts the calling thread; 0 means one for each hardware
  // thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, num_tasks) and returns when
  // all are done. thread is in [0, num_threads()): an index for scratch memory.
  // Not reentrant; one caller at a time.
  void ParallelFor(int64_t num_tasks,
                   const std::function<void(int64_t task, int thread)>& body);

 private:
  void WorkerLoop(int thread);
  void RunTasks(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  uint64_t generation_ =
      0;  // counts ParallelFor calls; a worker waits for it to change
  int running_ = 0;
  bool stop_ = false;
  std::atomic<int64_t> next_{0};
  int64_t num_tasks_ = 0;
  const std::function<void(int64_t, int)>* body_ = nullptr;
};

}  // namespace kvmix
