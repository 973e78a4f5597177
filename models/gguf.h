// GGUF files (version 3, little-endian): metadata and weights.
//
//   "GGUF"  u32 version = 3  u64 num_tensors  u64 num_entries
//   num_entries x { string key, u32 type, value }
//   num_tensors x { string name, u32 rank, u64 dims[rank] (fastest first),
//                   u32 element type, u64 offset }
//   padding to a multiple of `general.alignment` (32 if absent)
//   tensor data; offsets count from here and are multiples of the alignment
//
// string: u64 length and bytes. Value types: 0 u8, 1 i8, 2 u16, 3 i16, 4 u32,
// 5 i32, 6 f32, 7 bool (one byte), 8 string, 9 array {u32 type, u64 count,
// values}, 10 u64, 11 i64, 12 f64.
//
// Everything is checked when the file is opened, and no count in the file is
// believed before the bytes it promises are seen to be there.
// Source: the GGUF specification (ggml project, docs/gguf.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/weight_source.h"

namespace kvmix {

// A checked metadata value as it lies in the file.
struct GgufValue {
  uint32_t type;
  uint32_t element_type;    // of an array
  uint64_t count;           // of an array
  absl::string_view bytes;  // the value, or the array's elements
};

// Keys and typed values. What is returned as a view lives as long as the
// GgufFile or any copy of the shared pointer to this object.
class GgufMetadata {
 public:
  bool Has(absl::string_view key) const { return values_.contains(key); }
  std::vector<absl::string_view> Keys() const;  // sorted

  // T is one of
  //   bool, absl::string_view
  //   int64_t (any integer type, below 2^63)
  //   double (f32 or f64)
  //   std::vector<absl::string_view>, std::vector<int64_t>, std::vector<double>
  // A missing key is a NotFoundError; another type an InvalidArgumentError that
  // names both.
  template <typename T>
  absl::StatusOr<T> Get(absl::string_view key) const;

  // `fallback` where the key is missing; another type is still an error.
  template <typename T>
  absl::StatusOr<T> GetOr(absl::string_view key, T fallback) const {
    if (!Has(key)) return fallback;
    return Get<T>(key);
  }

 private:
  friend class GgufFile;
  absl::StatusOr<const GgufValue*> Find(absl::string_view key) const;

  absl::flat_hash_map<absl::string_view, GgufValue> values_;
  std::shared_ptr<const void> owner_;  // keeps the viewed bytes alive
};

// Tensor names become Hugging Face's; a tensor that has no name there keeps its
// own. Query and key rows of architecture "llama", which GGUF stores for
// interleaved RoPE, are put back into rotate-half order as they are read.
class GgufFile final : public WeightSource {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(
      const std::string& path);

  // The same from memory. `owner` keeps `bytes` alive; `name` stands for the
  // path in errors.
  static absl::StatusOr<std::unique_ptr<GgufFile>> FromBytes(
      absl::string_view bytes, std::shared_ptr<const void> owner,
      absl::string_view name);

  const std::shared_ptr<const GgufMetadata>& metadata() const {
    return metadata_;
  }

 private:
  struct Placement {
    const uint8_t* data;
    int64_t interleaved_head_dim;  // 0: rows are in rotate-half order
  };

  GgufFile() = default;
  absl::Status Parse(absl::string_view bytes,
                     std::shared_ptr<const void> owner);
  void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                uint8_t* out) const override;

  std::shared_ptr<const GgufMetadata> metadata_;
  std::vector<Placement> placements_;  // parallel to tensors()
};

}  // namespace kvmix
