// A lock that one process at a time holds, by a file of its own.
//
// The system gives it up when the process ends, however it ends. On file
// systems of a cluster it holds between machines if they support flock.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace kvmix {

// Move-only; gives the lock up when destroyed. The file stays.
class FileLock {
 public:
  // Waits until no other process holds it.
  static absl::StatusOr<FileLock> Wait(const std::string& path);
  // FailedPrecondition if another one holds it.
  static absl::StatusOr<FileLock> Try(const std::string& path);

  FileLock(FileLock&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  static absl::StatusOr<FileLock> Take(const std::string& path, bool wait);

  int descriptor_;
};

}  // namespace kvmix
