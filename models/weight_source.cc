#include "models/weight_source.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvmix/base/status_macros.h"
#include "models/quote.h"

namespace kvmix {
namespace {

constexpr int64_t kElementsPerTask = int64_t{1} << 16;
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

// Index of the first NaN or infinity, or kAllFinite.
int64_t FirstNonFinite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(x[i])) return i;
  return kAllFinite;
}

void LowerTo(std::atomic<int64_t>& minimum, int64_t value) {
  int64_t seen = minimum.load();
  while (value < seen && !minimum.compare_exchange_weak(seen, value)) {
  }
}

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

absl::Status WeightSource::ReadFloat(absl::string_view name,
                                     const std::vector<int64_t>& expected_shape,
                                     float* out, ThreadPool* pool) const {
  KVMIX_ASSIGN_OR_RETURN(const TensorInfo* const info, Find(name));
  if (info->shape != expected_shape)
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quote(name), " has shape ", ShapeText(info->shape),
        " in the file but the model needs ", ShapeText(expected_shape)));
  KVMIX_ASSIGN_OR_RETURN(const int64_t count, CountElements(info->shape));
  if (count == 0) return absl::OkStatus();

  const auto index = static_cast<size_t>(info - tensors_.data());
  const int64_t columns = info->shape.empty() ? 1 : info->shape.back();
  const int64_t rows = count / columns;
  const int64_t rows_per_task =
      std::max<int64_t>(1, kElementsPerTask / columns);
  const int64_t num_tasks = (rows + rows_per_task - 1) / rows_per_task;
  std::atomic<int64_t> first_bad{kAllFinite};
  const auto decode = [&](int64_t task, int) {
    const int64_t first = task * rows_per_task;
    const int64_t num_rows = std::min(rows_per_task, rows - first);
    float* const target = out + first * columns;
    DecodeRows(index, first, num_rows, target);
    const int64_t bad = FirstNonFinite(target, num_rows * columns);
    if (bad != kAllFinite) LowerTo(first_bad, first * columns + bad);
  };
  if (pool != nullptr) {
    pool->ParallelFor(num_tasks, decode);
  } else {
    for (int64_t task = 0; task < num_tasks; ++task) decode(task, 0);
  }
  for (const auto& file : mapped_files_) file->DropPages();
  if (first_bad == kAllFinite) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", Quote(name), " has the weight ", out[first_bad], " at ",
      PositionText(first_bad, info->shape),
      " but weights must be finite; the file is damaged, fetch it again"));
}

}  // namespace kvmix
