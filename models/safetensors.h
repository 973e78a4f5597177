// Weights in safetensors files.
//
//   u64 N (little-endian)   N bytes of JSON, N <= 100 MB   data
// The JSON, which may end in spaces, maps a tensor's name to
//   {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}
// (offsets count from the start of data) and may have "__metadata__", a map of
// strings. Tensors cover the data without holes or overlap, row-major.
// A model in several files has an index, {"weight_map": {name: file}}.
//
// Everything is checked when a file is opened. dtypes: F32, F16, BF16.
// Source: the safetensors format description.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/weight_source.h"

namespace kvmix {

class SafetensorsFiles final : public WeightSource {
 public:
  // `folder` holds model.safetensors, or the index and its shards.
  static absl::StatusOr<std::unique_ptr<SafetensorsFiles>> OpenFolder(
      const std::string& folder);

  // One file from memory. `owner` keeps `bytes` alive; `name` stands for the
  // path in errors.
  static absl::StatusOr<std::unique_ptr<SafetensorsFiles>> FromBytes(
      absl::string_view bytes, std::shared_ptr<const void> owner,
      absl::string_view name);

 private:
  SafetensorsFiles() = default;
  absl::Status OpenShards(const std::string& folder,
                          const std::string& index_path);
  void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                uint8_t* out) const override;

  std::vector<const uint8_t*> data_;  // parallel to tensors()
  std::vector<std::shared_ptr<const void>> owners_;
};

}  // namespace kvmix
