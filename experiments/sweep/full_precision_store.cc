#include "experiments/sweep/full_precision_store.h"

#include "absl/strings/str_cat.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

const float* FullPrecisionStore::Entry::logits() const {
  return mapped_ ? reinterpret_cast<const float*>(mapped_->data()) : nullptr;
}

void FullPrecisionStore::Entry::Append(absl::Span<const float> logits) {
  appended_.insert(appended_.end(), logits.begin(), logits.end());
}

absl::Status FullPrecisionStore::Entry::Keep(const std::string& summary) {
  const absl::string_view bytes(reinterpret_cast<const char*>(appended_.data()),
                                appended_.size() * sizeof(float));
  // In this order: a summary says that the logits are there.
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(path_ + ".logits", bytes));
  return WriteFileAtomically(path_ + ".pb", summary);
}

absl::StatusOr<FullPrecisionStore::Entry> FullPrecisionStore::Open(
    const std::string& window, int64_t num_floats) const {
  const std::string path = absl::StrCat(
      folder_, "/", Fingerprint(absl::StrCat(context_, "\n", window)));
  KVMIX_ASSIGN_OR_RETURN(FileLock lock, FileLock::Wait(path + ".lock"));
  Entry entry(path, std::move(lock));
  absl::StatusOr<std::string> summary = ReadFile(path + ".pb");
  if (!summary.ok()) return entry;
  if (num_floats > 0) {
    absl::StatusOr<MappedFile> logits = MappedFile::Open(path + ".logits");
    if (!logits.ok() || logits->size() != num_floats * sizeof(float))
      return entry;
    entry.mapped_.emplace(*std::move(logits));
  }
  entry.summary_ = *std::move(summary);
  return entry;
}

}  // namespace kvmix
