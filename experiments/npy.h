// A two-dimensional float32 array as NumPy's .npy file, format version 1.0,
// written row by row.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvmix {

class NpyWriter {
 public:
  // The file appears under its name when Finish succeeds; until then it is
  // PATH.tmp, which is removed if the writer goes without. A device or pipe is
  // written to directly.
  static absl::StatusOr<NpyWriter> Create(const std::string& path, int64_t rows,
                                          int64_t columns);
  NpyWriter(NpyWriter&&) = default;
  ~NpyWriter();

  // [num_rows, columns]
  absl::Status Append(const float* rows, int64_t num_rows);
  // Errors: fewer rows than announced, a full disk.
  absl::Status Finish();

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  NpyWriter() = default;
  absl::Status WriteError() const;

  std::string path_;
  std::string written_;  // path_, or its .tmp
  std::unique_ptr<std::FILE, Closer> file_;
  int64_t columns_ = 0;
  int64_t rows_left_ = 0;
};

}  // namespace kvmix
