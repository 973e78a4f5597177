// Whole files: read, written atomically, or mapped read-only into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvmix {

// Errors: a file of more than max_bytes, which an endless one (/dev/zero) is,
// too.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t max_bytes = size_t{1} << 30);

// Writes to a neighbour of `path`, syncs, and renames, so that `path` holds the
// old text or all of the new one, also when the disk fills up or the program is
// interrupted. Creates missing folders; follows a symbolic link to its file. A
// device or pipe (/dev/stdout) is written to directly.
absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view contents);

// A read-only mapping of a whole file; unmapped when destroyed. Move-only.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  absl::string_view view() const {
    return {reinterpret_cast<const char*>(data_), size_};
  }
  const std::string& path() const { return path_; }
  // Gives the memory of what was read so far back to the system; reading it
  // again reads the file again.
  void DropPages() const;

 private:
  MappedFile() = default;

  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace kvmix
