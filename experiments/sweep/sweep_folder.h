// A sweep on disk.
//
//   FOLDER/manifest.textproto       what it consists of
//   FOLDER/lock                     held by the program that runs it
//   FOLDER/cells/<key>/             files of a cell, as kvmix run writes them;
//                                   done when record.textproto is there
//   FOLDER/cells/<key>/failed.txt   why it failed; gone when it is tried again
//   FOLDER/cells/<key>/log.txt      what the cell's process printed
//   FOLDER/cells/<key>/lock         held by that process
//   FOLDER/full_precision/          logits shared by cells
//   FOLDER/profiles/                profiles, the same
#pragma once

#include <atomic>
#include <string>

#include "absl/status/statusor.h"
#include "experiments/sweep/manifest.pb.h"

namespace kvmix {

class SweepFolder {
 public:
  // A folder that may not be there yet; nothing is written. FailedPrecondition:
  // it holds another sweep.
  static absl::StatusOr<SweepFolder> Preview(const std::string& path,
                                             const SweepManifest& manifest);
  // The same, and writes the manifest if it is not there.
  static absl::StatusOr<SweepFolder> Create(const std::string& path,
                                            const SweepManifest& manifest);
  // Of a sweep that has been set up.
  static absl::StatusOr<SweepFolder> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const SweepManifest& manifest() const { return manifest_; }
  std::string CellPath(const SweepCell& cell) const;

  enum class State { kOpen, kDone, kFailed };
  State StateOf(const SweepCell& cell) const;
  // Why a failed cell failed.
  std::string Failure(const SweepCell& cell) const;

  absl::Status MarkFailed(const SweepCell& cell, const std::string& why) const;
  // So that it is tried again.
  absl::Status ForgetFailure(const SweepCell& cell) const;

  absl::StatusOr<const SweepCell*> FindCell(const std::string& key) const;

 private:
  SweepFolder(std::string path, SweepManifest manifest)
      : path_(std::move(path)), manifest_(std::move(manifest)) {}

  std::string path_;
  SweepManifest manifest_;
};

// Runs one cell in this process, unless it is done; a process that runs it
// already is waited for. threads: as in a config.
absl::Status RunCell(const SweepFolder& folder, const SweepCell& cell,
                     int threads, const std::atomic<bool>* stop);

}  // namespace kvmix
