// Builds small GGUF files in memory, right or wrong ones, for tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvmix::testing {

// The bytes of a number, or of a string as GGUF stores it.
template <typename T>
std::string Bytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
inline std::string StringBytes(absl::string_view text) {
  return Bytes<uint64_t>(text.size()) + std::string(text);
}
inline std::string FloatBytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()),
                     values.size() * sizeof(float));
}

class GgufTestWriter {
 public:
  GgufTestWriter& Int(absl::string_view key, uint32_t value) {
    return Raw(key, 4, Bytes(value));
  }
  GgufTestWriter& Float(absl::string_view key, float value) {
    return Raw(key, 6, Bytes(value));
  }
  GgufTestWriter& Bool(absl::string_view key, bool value) {
    return Raw(key, 7, Bytes<uint8_t>(value));
  }
  GgufTestWriter& String(absl::string_view key, absl::string_view value) {
    return Raw(key, 8, StringBytes(value));
  }
  GgufTestWriter& Strings(absl::string_view key,
                          const std::vector<std::string>& values) {
    std::string bytes = Bytes<uint32_t>(8) + Bytes<uint64_t>(values.size());
    for (const std::string& value : values) bytes += StringBytes(value);
    return Raw(key, 9, bytes);
  }
  GgufTestWriter& Raw(absl::string_view key, uint32_t type,
                      const std::string& bytes) {
    entries_ += StringBytes(key) + Bytes(type) + bytes;
    ++num_entries_;
    return *this;
  }

  // Row-major shape; data is placed after what is there, 32-byte aligned.
  GgufTestWriter& Tensor(absl::string_view name,
                         const std::vector<int64_t>& shape, uint32_t type,
                         const std::string& bytes) {
    data_.resize((data_.size() + 31) / 32 * 32);
    TensorEntry(name, shape, type, data_.size());
    data_ += bytes;
    return *this;
  }
  GgufTestWriter& FloatTensor(absl::string_view name,
                              const std::vector<int64_t>& shape,
                              const std::vector<float>& values) {
    return Tensor(name, shape, 0, FloatBytes(values));
  }
  // An entry of the tensor table alone.
  GgufTestWriter& TensorEntry(absl::string_view name,
                              const std::vector<int64_t>& shape, uint32_t type,
                              uint64_t offset) {
    tensors_ += StringBytes(name) + Bytes<uint32_t>(shape.size());
    for (size_t i = shape.size(); i-- > 0;) tensors_ += Bytes(shape[i]);
    tensors_ += Bytes(type) + Bytes(offset);
    ++num_tensors_;
    return *this;
  }

  std::string Build() const { return Build(num_tensors_, num_entries_); }
  // With counts that need not be true.
  std::string Build(uint64_t num_tensors, uint64_t num_entries) const {
    std::string file = "GGUF" + Bytes<uint32_t>(3) + Bytes(num_tensors) +
                       Bytes(num_entries) + entries_ + tensors_;
    file.resize((file.size() + 31) / 32 * 32);
    return file + data_;
  }

 private:
  std::string entries_, tensors_, data_;
  uint64_t num_entries_ = 0, num_tensors_ = 0;
};

// A copy in memory of exactly its size, where a sanitizer sees the first byte
// read beyond it.
struct ExactCopy {
  explicit ExactCopy(absl::string_view bytes)
      : owner(new char[bytes.size()], std::default_delete<char[]>()),
        view(owner.get(), bytes.size()) {
    bytes.copy(owner.get(), bytes.size());
  }
  std::shared_ptr<char> owner;
  absl::string_view view;
};

}  // namespace kvmix::testing
