#include "kvmix/base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

using Clock = std::chrono::steady_clock;

int HardwareThreads() {
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Lets the other hardware thread of the core, and memory, have a moment.
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint64_t kLoop = uint64_t{1} << 32;

// The process's own CPUs, before any thread was pinned.
const std::vector<int>& AllowedCpus() {
  static const std::vector<int> cpus = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> allowed;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
      for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &set)) allowed.push_back(cpu);
    }
    return allowed;
  }();
  return cpus;
}

bool PinTo(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(thread, sizeof(set), &set) == 0;
}

}  // namespace

template <class Ready>
void ThreadPool::Bed::WaitFor(std::chrono::microseconds spin,
                              const Ready& ready) {
  constexpr int kPausesBetweenLooksAtTheClock = 32;
  if (spin.count() > 0) {
    const Clock::time_point end = Clock::now() + spin;
    do {
      for (int i = 0; i < kPausesBetweenLooksAtTheClock; ++i) {
        if (ready()) return;
        Pause();
      }
    } while (Clock::now() < end);
  }
  std::unique_lock lock(mutex_);
  // Announced before the last look: who changes something after that look sees
  // a sleeper.
  sleepers_.fetch_add(1);
  wake_.wait(lock, ready);
  sleepers_.fetch_sub(1);
}

void ThreadPool::Bed::Wake() {
  if (sleepers_.load() == 0) return;
  { std::lock_guard lock(mutex_); }
  wake_.notify_all();
}

ThreadPool::ThreadPool(int num_threads)
    : spin_(num_threads > HardwareThreads() ? std::chrono::microseconds{0}
                                            : kSpinTime) {
  if (num_threads <= 0) num_threads = HardwareThreads();
  for (int i = 1; i < num_threads; ++i)
    workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  workers_bed_.Wake();
  for (std::thread& worker : workers_) worker.join();
}

absl::Status ThreadPool::Pin() {
  const std::vector<int>& cpus = AllowedCpus();
  if (cpus.size() < static_cast<size_t>(num_threads())) {
    return absl::FailedPreconditionError(absl::StrCat(
        num_threads(), " threads cannot be pinned: this process may use ",
        cpus.size(), " CPUs; use fewer threads, or do not pin them"));
  }
  bool pinned = PinTo(pthread_self(), cpus[0]);
  for (size_t i = 0; i < workers_.size(); ++i)
    pinned = PinTo(workers_[i].native_handle(), cpus[i + 1]) && pinned;
  if (pinned) return absl::OkStatus();
  return absl::InternalError(
      "the system did not let threads be pinned to CPUs; do not pin them");
}

void ThreadPool::ParallelFor(int64_t num_tasks, Body body) {
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t i = 0; i < num_tasks; ++i) body(i, 0);
    return;
  }
  KVMIX_CHECK(num_tasks < static_cast<int64_t>(kLoop / 2));
  // Closed first: a thread that still holds the last loop's ticket and sees the
  // new num_tasks must not take it.
  const uint64_t last_loop = ticket_.load() / kLoop;
  ticket_.store(last_loop * kLoop + (kLoop - 1));
  body_.store(&body);
  num_tasks_.store(num_tasks);
  num_done_.store(0);
  ticket_.store((last_loop + 1) * kLoop);
  workers_bed_.Wake();
  RunTasks(0);
  caller_bed_.WaitFor(spin_, [&] { return num_done_.load() == num_tasks; });
}

void ThreadPool::RunTasks(int thread) {
  int64_t count = 0;
  uint64_t ticket = ticket_.load();
  for (;;) {
    const auto task = static_cast<int64_t>(ticket % kLoop);
    const Body* const body = body_.load();
    if (task >= num_tasks_.load()) break;
    // Succeeds only if the ticket is still the same: then the loop has an
    // unfinished task, so that body and num_tasks are its own.
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    (*body)(task, thread);
    ++count;
    ticket = ticket_.load();
  }
  if (count == 0) return;
  const int64_t done = num_done_.fetch_add(count) + count;
  if (done == num_tasks_.load()) caller_bed_.Wake();
}

void ThreadPool::WorkerLoop(int thread) {
  uint64_t seen = 0;
  for (;;) {
    workers_bed_.WaitFor(
        spin_, [&] { return stop_ || ticket_.load() / kLoop != seen; });
    if (stop_) return;
    seen = ticket_.load() / kLoop;
    RunTasks(thread);
  }
}

}  // namespace kvmix
