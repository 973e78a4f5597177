#include "kvmix/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

absl::Status ErrnoStatus(int error, absl::string_view action,
                         const std::string& path) {
  return absl::ErrnoToStatus(error, absl::StrCat("cannot ", action, " ", path));
}

// A file descriptor that closes itself.
struct Descriptor {
  int fd;
  explicit Descriptor(int fd) : fd(fd) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

absl::Status WriteAll(int fd, absl::string_view contents,
                      const std::string& path) {
  while (!contents.empty()) {
    const ssize_t written = write(fd, contents.data(), contents.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write", path);
    contents.remove_prefix(static_cast<size_t>(written));
  }
  // Pipes and some devices cannot be synced.
  if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS)
    return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

absl::Status CreateFolderOf(const std::string& path) {
  const std::filesystem::path folder =
      std::filesystem::path(path).parent_path();
  if (folder.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), "create folder", folder);
  return absl::OkStatus();
}

absl::Status WriteToDevice(const std::string& path,
                           absl::string_view contents) {
  Descriptor file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (file.fd < 0) return ErrnoStatus(errno, "open", path);
  return WriteAll(file.fd, contents, path);
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t max_bytes) {
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0) return ErrnoStatus(errno, "read", path);
  std::string contents;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = read(file.fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read", path);
    if (got == 0) return contents;
    if (static_cast<size_t>(got) > max_bytes - contents.size()) {
      return absl::ResourceExhaustedError(
          absl::StrCat(path, " is larger than ", max_bytes,
                       " bytes, the most that is read"));
    }
    contents.append(buffer, static_cast<size_t>(got));
  }
}

absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view contents) {
  std::error_code no_file;
  const std::filesystem::file_status existing =
      std::filesystem::status(path, no_file);
  if (std::filesystem::exists(existing) &&
      !std::filesystem::is_regular_file(existing) &&
      !std::filesystem::is_directory(existing)) {
    return WriteToDevice(path, contents);
  }
  KVMIX_RETURN_IF_ERROR(CreateFolderOf(path));
  // Renaming onto a symbolic link would replace the link.
  std::error_code error;
  std::filesystem::path target = std::filesystem::weakly_canonical(path, error);
  if (error) target = path;
  const std::string temporary =
      absl::StrCat(target.string(), ".", getpid(), ".tmp");
  absl::Status status;
  {
    Descriptor file(open(temporary.c_str(),
                         O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file.fd < 0) return ErrnoStatus(errno, "create", temporary);
    status = WriteAll(file.fd, contents, path);
  }
  if (status.ok() && std::rename(temporary.c_str(), target.c_str()) != 0)
    status = ErrnoStatus(errno, "rename to", path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0) return ErrnoStatus(errno, "open", path);
  struct stat info;
  if (fstat(file.fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (!S_ISREG(info.st_mode))
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a regular file"));
  MappedFile mapped;
  mapped.path_ = path;
  mapped.size_ = static_cast<size_t>(info.st_size);
  if (mapped.size_ == 0) return mapped;  // mmap refuses empty files
  void* data = mmap(nullptr, mapped.size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) {
    mapped.size_ = 0;
    return ErrnoStatus(errno, "map", path);
  }
  mapped.data_ = static_cast<const uint8_t*>(data);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept {
  *this = std::move(other);
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::DropPages() const {
  if (data_ != nullptr)
    madvise(const_cast<uint8_t*>(data_), size_, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace kvmix
