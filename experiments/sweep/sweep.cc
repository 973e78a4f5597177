#include "experiments/sweep/sweep.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "experiments/paths.h"
#include "experiments/sweep/file_lock.h"
#include "kvmix/base/file.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

struct RunningCell {
  pid_t process;
  const SweepCell* cell;
};

std::string LogPath(const SweepFolder& folder, const SweepCell& cell) {
  return folder.CellPath(cell) + "/log.txt";
}

// `kvmix cell`, its output in the cell's log.
absl::StatusOr<RunningCell> Start(const SweepFolder& folder,
                                  const SweepCell& cell, int threads,
                                  const std::string& program) {
  std::error_code ignored;  // the log's open says what is wrong
  fs::create_directories(folder.CellPath(cell), ignored);
  std::vector<std::string> args = {program,
                                   "cell",
                                   folder.path(),
                                   cell.key(),
                                   absl::StrCat("--threads=", threads),
                                   absl::StrCat("--parent=", getpid())};
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const std::string log = LogPath(folder, cell);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  RunningCell running = {.process = 0, .cell = &cell};
  const int error = posix_spawn(&running.process, program.c_str(), &actions,
                                nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == 0) return running;
  return absl::ErrnoToStatus(
      error, absl::StrCat("cannot start ", program, " with its log in ", log));
}

// The last line that a failed cell printed, which is its error.
std::string LastLine(const std::string& path) {
  const std::string text = ReadFile(path).value_or("");
  const std::vector<std::string> lines =
      absl::StrSplit(text, absl::ByAnyChar("\r\n"), absl::SkipWhitespace());
  return lines.empty() ? "it printed nothing" : lines.back();
}

std::string WhyItEnded(int wait_status, const std::string& log) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("ended by signal ", WTERMSIG(wait_status), " (",
                        strsignal(WTERMSIG(wait_status)),
                        "); its log ends: ", LastLine(log));
  }
  return LastLine(log);
}

class CellRunner {
 public:
  CellRunner(const SweepFolder& folder, const SweepOptions& options)
      : folder_(folder),
        options_(options),
        program_(options.program.empty() ? ThisProgram() : options.program),
        threads_(options.threads > 0
                     ? options.threads
                     : std::max<int>(1, std::thread::hardware_concurrency() /
                                            options.jobs)) {}

  absl::StatusOr<SweepOutcome> Run(const std::atomic<bool>& stop) {
    KVMIX_RETURN_IF_ERROR(Sort());
    ProgressBar bar(absl::StrCat("sweep ", folder_.manifest().name()),
                    folder_.manifest().cell_size(), "cells");
    bar.AdvanceFinished(folder_.manifest().cell_size() -
                        static_cast<int64_t>(open_.size()));
    while (!open_.empty() || !running_.empty()) {
      if (stop) return Cancel();
      while (!open_.empty() &&
             running_.size() < static_cast<size_t>(options_.jobs)) {
        absl::StatusOr<RunningCell> started =
            Start(folder_, *open_.front(), threads_, program_);
        if (!started.ok()) {
          StopAll();
          return started.status();
        }
        open_.pop_front();
        running_.push_back(*started);
      }
      KVMIX_ASSIGN_OR_RETURN(const int ended, CollectEnded(stop));
      bar.Advance(ended);
      if (ended == 0) absl::SleepFor(absl::Milliseconds(20));
    }
    return std::move(outcome_);
  }

 private:
  // What is there, what failed, and what is to be done.
  absl::Status Sort() {
    for (const SweepCell& cell : folder_.manifest().cell()) {
      SweepFolder::State state = folder_.StateOf(cell);
      if (state == SweepFolder::State::kFailed && options_.retry_failed) {
        KVMIX_RETURN_IF_ERROR(folder_.ForgetFailure(cell));
        state = SweepFolder::State::kOpen;
      }
      if (state == SweepFolder::State::kDone) ++outcome_.done;
      if (state == SweepFolder::State::kFailed)
        outcome_.failed.push_back(&cell);
      if (state == SweepFolder::State::kOpen) open_.push_back(&cell);
    }
    return absl::OkStatus();
  }

  // The number of cells that have ended since.
  absl::StatusOr<int> CollectEnded(const std::atomic<bool>& stop) {
    int ended = 0;
    for (size_t i = 0; i < running_.size();) {
      int wait_status = 0;
      if (waitpid(running_[i].process, &wait_status, WNOHANG) == 0) {
        ++i;
        continue;
      }
      const SweepCell& cell = *running_[i].cell;
      running_.erase(running_.begin() + static_cast<int64_t>(i));
      // Ctrl-C reaches the cells, too: that is no failure of theirs.
      if (stop) continue;
      ++ended;
      if (folder_.StateOf(cell) == SweepFolder::State::kDone) {
        ++outcome_.done;
        ++outcome_.ran;
        continue;
      }
      // A cell says itself why it failed, unless it crashed.
      if (folder_.StateOf(cell) == SweepFolder::State::kOpen) {
        KVMIX_RETURN_IF_ERROR(folder_.MarkFailed(
            cell, WhyItEnded(wait_status, LogPath(folder_, cell))));
      }
      outcome_.failed.push_back(&cell);
    }
    return ended;
  }

  void StopAll() {
    for (const RunningCell& running : running_) kill(running.process, SIGINT);
    for (const RunningCell& running : running_)
      waitpid(running.process, nullptr, 0);
    running_.clear();
  }

  absl::Status Cancel() {
    StopAll();
    return absl::CancelledError(absl::StrCat(
        "interrupted; ", outcome_.done, " of ", folder_.manifest().cell_size(),
        " cells are done in ", folder_.path(),
        ", and the same command goes on from there"));
  }

  const SweepFolder& folder_;
  const SweepOptions& options_;
  const std::string program_;
  const int threads_;
  SweepOutcome outcome_;
  std::deque<const SweepCell*> open_;
  std::vector<RunningCell> running_;
};

}  // namespace

absl::StatusOr<FileLock> LockSweep(const SweepFolder& folder) {
  absl::StatusOr<FileLock> lock = FileLock::Try(folder.path() + "/lock");
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("another kvmix sweep is running in ", folder.path(),
                     "; wait for it, or give --folder another one"));
  }
  return lock;
}

absl::StatusOr<SweepOutcome> RunSweep(const SweepFolder& folder,
                                      const SweepOptions& options,
                                      const std::atomic<bool>& stop) {
  KVMIX_ASSIGN_OR_RETURN(const FileLock lock, LockSweep(folder));
  return CellRunner(folder, options).Run(stop);
}

}  // namespace kvmix
