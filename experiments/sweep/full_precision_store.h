// What full precision said about a window, kept on disk so that cells of a
// sweep which share the window run it once.
//
//   FOLDER/<key>.pb      a summary, whatever the caller makes of it
//   FOLDER/<key>.logits  float [rows, V], native byte order
//   FOLDER/<key>.lock    held while the window is being run
//
// The key must name all that the logits depend on.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/sweep/file_lock.h"
#include "kvmix/base/file.h"

namespace kvmix {

class FullPrecisionStore {
 public:
  // One window. If another process is running it, opening waits for that one.
  class Entry {
   public:
    // Whether the window is there; else it is to be run, its logits appended in
    // order, and kept.
    bool found() const { return summary_.has_value(); }
    // Preconditions: found().
    const std::string& summary() const { return *summary_; }
    const float* logits() const;

    void Append(absl::Span<const float> logits);
    absl::Status Keep(const std::string& summary);

   private:
    friend class FullPrecisionStore;
    Entry(std::string path, FileLock lock)
        : path_(std::move(path)), lock_(std::move(lock)) {}

    std::string path_;  // without the ending
    FileLock lock_;
    std::optional<std::string> summary_;
    std::optional<MappedFile> mapped_;
    std::vector<float> appended_;
  };

  // `context`: what windows of this store share, a part of every key.
  FullPrecisionStore(std::string folder, std::string context)
      : folder_(std::move(folder)), context_(std::move(context)) {}

  // `window`: what tells it from others. num_floats: of its logits.
  absl::StatusOr<Entry> Open(const std::string& window,
                             int64_t num_floats) const;

 private:
  const std::string folder_;
  const std::string context_;
};

}  // namespace kvmix
