// The weights of a model as named float tensors, whatever file they lie in.
//
// Names are Hugging Face's ("model.layers.3.self_attn.q_proj.weight"); a linear
// layer's weight is [outputs, inputs], row-major, and query and key rows are in
// the order of rotate-half RoPE. Sources read from a memory map: opening one
// costs its header, and only what is read is converted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvmix/base/file.h"
#include "kvmix/base/thread_pool.h"
#include "models/ggml_blocks.h"

namespace kvmix {

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;  // row-major, last dimension contiguous
  ElementType type;            // as stored
};

// "[49152, 576]"
std::string ShapeText(const std::vector<int64_t>& shape);

// Product of the dimensions; an error if one is negative or the product does
// not fit.
absl::StatusOr<int64_t> CountElements(const std::vector<int64_t>& shape);

// An error that names the tensor unless it has the shape that the model needs.
absl::Status CheckShape(const TensorInfo& info,
                        const std::vector<int64_t>& expected);

// Thread-safe once built.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // A missing name is a NotFoundError that lists the nearest ones. The pointer
  // lives as long as the source.
  absl::StatusOr<const TensorInfo*> Find(absl::string_view name) const;

  // Rows [first, first + count) of a tensor seen as [product of leading
  // dimensions, last dimension].
  struct Rows {
    int64_t first;
    int64_t count;
    const uint8_t* stored;  // blocks of the tensor's type, row after row
    const float* values;    // the same, decoded
  };
  using RowsConsumer = absl::FunctionRef<void(const Rows&)>;

  // Shows every row once, in runs of about 256 KiB of floats that begin at
  // multiples of 32 rows. With a pool, runs are shown by several threads at a
  // time. Refused: a missing name, a shape other than `expected_shape`, a NaN
  // or infinite weight (named with its index; rows may have been shown by
  // then). Memory: one run a thread, and of a mapped file a few MiB.
  absl::Status ReadRows(absl::string_view name,
                        const std::vector<int64_t>& expected_shape,
                        ThreadPool* pool, RowsConsumer consume) const;

  // The same into `out`, as float.
  absl::Status ReadFloat(absl::string_view name,
                         const std::vector<int64_t>& expected_shape, float* out,
                         ThreadPool* pool = nullptr) const;

 protected:
  WeightSource() = default;

  // Declares the next tensor; its index is tensors().size() - 1 afterwards. A
  // name given twice is an error.
  absl::Status AddTensor(TensorInfo info);

  // Tensors lie in this mapped file. Its pages are dropped as they have been
  // read, so that a model is not in memory twice.
  void AddMappedFile(std::shared_ptr<const MappedFile> file) {
    mapped_files_.push_back(std::move(file));
  }

 private:
  // Copies rows [first_row, first_row + num_rows) of tensors()[index], seen as
  // [product of leading dimensions, last dimension], as they are stored.
  virtual void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                        uint8_t* out) const = 0;

  std::vector<TensorInfo> tensors_;
  std::vector<std::shared_ptr<const MappedFile>> mapped_files_;
  absl::flat_hash_map<std::string, size_t> index_by_name_;
};

}  // namespace kvmix
