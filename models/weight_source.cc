#include "models/weight_source.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvmix/base/status_macros.h"
#include "models/quote.h"

namespace kvmix {
namespace {

// A run of rows is shown at a time; runs begin at multiples of kRunAlignment
// rows. A mapped file's pages are dropped every few runs.
constexpr int64_t kElementsPerRun = int64_t{1} << 16;
constexpr int64_t kRunAlignment = 32;
constexpr int64_t kRunsBetweenDrops = 8;
constexpr int64_t kAllFinite = std::numeric_limits<int64_t>::max();

// How alike two names are: the length of what they begin and end with in
// common.
size_t Likeness(absl::string_view a, absl::string_view b) {
  const size_t shorter = std::min(a.size(), b.size());
  size_t prefix = 0;
  while (prefix < shorter && a[prefix] == b[prefix]) ++prefix;
  size_t suffix = 0;
  while (suffix < shorter - prefix &&
         a[a.size() - 1 - suffix] == b[b.size() - 1 - suffix])
    ++suffix;
  return prefix + suffix;
}

std::string NearestNames(absl::string_view name,
                         const std::vector<TensorInfo>& tensors) {
  std::vector<std::pair<size_t, const std::string*>> ranked;
  ranked.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors)
    ranked.emplace_back(Likeness(name, tensor.name), &tensor.name);
  const size_t count = std::min<size_t>(3, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + count, ranked.end(),
                    [](const auto& a, const auto& b) {
                      if (a.first != b.first) return a.first > b.first;
                      return *a.second < *b.second;
                    });
  ranked.resize(count);
  return absl::StrJoin(ranked, ", ", [](std::string* out, const auto& entry) {
    absl::StrAppend(out, Quote(*entry.second));
  });
}

// The first NaN or infinity of a tensor whose parts are checked by several
// threads.
class FirstBad {
 public:
  // `values` begin at flat index `offset`.
  void Check(const std::vector<float>& values, int64_t offset) {
    const auto found = std::find_if_not(
        values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    if (found == values.end()) return;
    std::lock_guard lock(mutex_);
    const int64_t index = offset + (found - values.begin());
    if (index >= index_) return;
    index_ = index;
    value_ = *found;
  }
  // After all checks.
  int64_t index() const { return index_; }
  float value() const { return value_; }

 private:
  std::mutex mutex_;
  int64_t index_ = kAllFinite;
  float value_ = 0;
};

// Position of a flat index in a row-major shape: "[3, 17]".
std::string PositionText(int64_t flat, const std::vector<int64_t>& shape) {
  std::vector<int64_t> position(shape.size());
  for (size_t i = shape.size(); i-- > 0; flat /= shape[i])
    position[i] = flat % shape[i];
  return ShapeText(position);
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<int64_t> CountElements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(count, dimension, &count))
      return absl::InvalidArgumentError(
          absl::StrCat("shape ", ShapeText(shape),
                       " has a negative dimension or too many elements"));
  }
  return count;
}

absl::Status CheckShape(const TensorInfo& info,
                        const std::vector<int64_t>& expected) {
  if (info.shape == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", Quote(info.name), " has shape ", ShapeText(info.shape),
      " in the file but the model needs ", ShapeText(expected)));
}

absl::Status WeightSource::AddTensor(TensorInfo info) {
  if (!index_by_name_.emplace(info.name, tensors_.size()).second)
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quote(info.name), " occurs twice; the file is damaged"));
  tensors_.push_back(std::move(info));
  return absl::OkStatus();
}

absl::StatusOr<const TensorInfo*> WeightSource::Find(
    absl::string_view name) const {
  const auto found = index_by_name_.find(name);
  if (found != index_by_name_.end()) return &tensors_[found->second];
  if (tensors_.empty())
    return absl::NotFoundError(absl::StrCat("there is no tensor ", Quote(name),
                                            "; the file has none"));
  return absl::NotFoundError(absl::StrCat("there is no tensor ", Quote(name),
                                          "; nearest of ", tensors_.size(),
                                          ": ", NearestNames(name, tensors_)));
}

absl::Status WeightSource::ReadRows(absl::string_view name,
                                    const std::vector<int64_t>& expected_shape,
                                    ThreadPool* pool,
                                    RowsConsumer consume) const {
  KVMIX_ASSIGN_OR_RETURN(const TensorInfo* const info, Find(name));
  KVMIX_RETURN_IF_ERROR(CheckShape(*info, expected_shape));
  KVMIX_ASSIGN_OR_RETURN(const int64_t count, CountElements(info->shape));
  if (count == 0) return absl::OkStatus();

  const auto index = static_cast<size_t>(info - tensors_.data());
  const BlockLayout& layout = LayoutOf(info->type);
  const int64_t columns = info->shape.empty() ? 1 : info->shape.back();
  const int64_t row_bytes = columns / layout.elements * layout.bytes;
  const int64_t rows = count / columns;
  const int64_t rows_per_run =
      std::max<int64_t>(1, kElementsPerRun / columns / kRunAlignment) *
      kRunAlignment;
  const int64_t num_runs = (rows + rows_per_run - 1) / rows_per_run;
  FirstBad bad;
  const auto read = [&](int64_t run) {
    const int64_t first = run * rows_per_run;
    const int64_t num_rows = std::min(rows_per_run, rows - first);
    std::vector<uint8_t> stored(num_rows * row_bytes);
    std::vector<float> values(num_rows * columns);
    CopyRows(index, first, num_rows, stored.data());
    DecodeBlocks(info->type, stored.data(), num_rows * columns, values.data());
    bad.Check(values, first * columns);
    consume({first, num_rows, stored.data(), values.data()});
  };
  for (int64_t run = 0; run < num_runs; run += kRunsBetweenDrops) {
    const int64_t tasks = std::min(kRunsBetweenDrops, num_runs - run);
    if (pool != nullptr) {
      pool->ParallelFor(tasks, [&](int64_t i, int) { read(run + i); });
    } else {
      for (int64_t i = 0; i < tasks; ++i) read(run + i);
    }
    for (const auto& file : mapped_files_) file->DropPages();
  }
  if (bad.index() == kAllFinite) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", Quote(name), " has the weight ", bad.value(), " at ",
      PositionText(bad.index(), info->shape),
      " but weights must be finite; the file is damaged, fetch it again"));
}

absl::Status WeightSource::ReadFloat(absl::string_view name,
                                     const std::vector<int64_t>& expected_shape,
                                     float* out, ThreadPool* pool) const {
  const int64_t columns = expected_shape.empty() ? 1 : expected_shape.back();
  return ReadRows(name, expected_shape, pool, [&](const Rows& rows) {
    std::copy_n(rows.values, rows.count * columns, out + rows.first * columns);
  });
}

}  // namespace kvmix
