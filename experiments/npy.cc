#include "experiments/npy.h"

#include <bit>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

static_assert(std::endian::native == std::endian::little);

// Magic, version, length of the dictionary, and the dictionary padded so that
// data starts at a multiple of 64.
std::string Header(int64_t rows, int64_t columns) {
  std::string dictionary =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows,
                   ", ", columns, "), }");
  const size_t prefix = 10;
  dictionary.append(63 - (prefix + dictionary.size()) % 64, ' ');
  dictionary += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dictionary.size() & 0xFF);
  header += static_cast<char>(dictionary.size() >> 8);
  return header + dictionary;
}

}  // namespace

absl::Status NpyWriter::WriteError() const {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_));
}

absl::StatusOr<NpyWriter> NpyWriter::Create(const std::string& path,
                                            int64_t rows, int64_t columns) {
  NpyWriter writer;
  writer.path_ = path;
  std::error_code error;
  const std::filesystem::file_status status =
      std::filesystem::status(path, error);
  const bool in_place = std::filesystem::exists(status) &&
                        !std::filesystem::is_regular_file(status) &&
                        !std::filesystem::is_directory(status);
  writer.written_ = in_place ? path : path + ".tmp";
  writer.columns_ = columns;
  writer.rows_left_ = rows;
  writer.file_.reset(std::fopen(writer.written_.c_str(), "wb"));
  if (writer.file_ == nullptr) return writer.WriteError();
  const std::string header = Header(rows, columns);
  if (std::fwrite(header.data(), 1, header.size(), writer.file_.get()) !=
      header.size())
    return writer.WriteError();
  return writer;
}

NpyWriter::~NpyWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  if (written_ != path_) std::remove(written_.c_str());
}

absl::Status NpyWriter::Append(const float* rows, int64_t num_rows) {
  KVMIX_CHECK(num_rows <= rows_left_);
  rows_left_ -= num_rows;
  const size_t count = static_cast<size_t>(num_rows * columns_);
  if (std::fwrite(rows, sizeof(float), count, file_.get()) != count)
    return WriteError();
  return absl::OkStatus();
}

absl::Status NpyWriter::Finish() {
  KVMIX_CHECK(rows_left_ == 0);
  if (std::fflush(file_.get()) != 0) return WriteError();
  file_.reset();
  if (written_ == path_ || std::rename(written_.c_str(), path_.c_str()) == 0)
    return absl::OkStatus();
  const absl::Status error = WriteError();
  std::remove(written_.c_str());
  return error;
}

}  // namespace kvmix
