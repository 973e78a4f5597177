#include "experiments/sweep/full_precision_store.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// What a writer that was killed left of an entry, whose lock the caller holds.
void RemoveUnfinished(const std::string& folder, const std::string& key) {
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = file.path().filename();
    if (absl::StartsWith(name, key + ".") && absl::EndsWith(name, ".tmp"))
      std::filesystem::remove(file.path(), error);
  }
}

}  // namespace

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
  const std::string key = Fingerprint(absl::StrCat(context_, "\n", window));
  const std::string path = absl::StrCat(folder_, "/", key);
  KVMIX_ASSIGN_OR_RETURN(FileLock lock, FileLock::Wait(path + ".lock"));
  RemoveUnfinished(folder_, key);
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
