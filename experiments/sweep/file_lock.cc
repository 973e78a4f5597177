#include "experiments/sweep/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace kvmix {

absl::StatusOr<FileLock> FileLock::Take(const std::string& path, bool wait) {
  std::error_code ignored;  // open says what is wrong
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(),
                                      ignored);
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
  }
  int result;
  do {
    result = flock(descriptor, LOCK_EX | (wait ? 0 : LOCK_NB));
  } while (result != 0 && errno == EINTR);
  if (result == 0) return FileLock(descriptor);
  const int error = errno;
  close(descriptor);
  if (error == EWOULDBLOCK) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is locked by another process"));
  }
  return absl::ErrnoToStatus(error, absl::StrCat("cannot lock ", path));
}

absl::StatusOr<FileLock> FileLock::Wait(const std::string& path) {
  return Take(path, /*wait=*/true);
}

absl::StatusOr<FileLock> FileLock::Try(const std::string& path) {
  return Take(path, /*wait=*/false);
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace kvmix
