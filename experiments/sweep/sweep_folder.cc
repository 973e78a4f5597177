#include "experiments/sweep/sweep_folder.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/sweep/file_lock.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

std::string ManifestPath(const std::string& folder) {
  return folder + "/manifest.textproto";
}

// What differs, for the message that refuses to go on.
std::string Difference(const SweepManifest& here, const SweepManifest& wanted) {
  for (const SweepInput& input : wanted.input()) {
    for (const SweepInput& old : here.input()) {
      if (old.path() == input.path() &&
          old.fingerprint() != input.fingerprint())
        return absl::StrCat(input.path(), " has changed since then");
    }
  }
  return absl::StrCat("that one is \"", here.name(), "\" with ",
                      here.cell_size(), " cells, this one \"", wanted.name(),
                      "\" with ", wanted.cell_size());
}

}  // namespace

absl::StatusOr<SweepFolder> SweepFolder::Create(const std::string& path,
                                                const SweepManifest& manifest) {
  KVMIX_ASSIGN_OR_RETURN(SweepFolder folder, Preview(path, manifest));
  const std::string file = ManifestPath(path);
  if (!PathExists(file)) KVMIX_RETURN_IF_ERROR(WriteTextProto(manifest, file));
  return folder;
}

absl::StatusOr<SweepFolder> SweepFolder::Preview(
    const std::string& path, const SweepManifest& manifest) {
  if (!PathExists(ManifestPath(path))) return SweepFolder(path, manifest);
  KVMIX_ASSIGN_OR_RETURN(SweepFolder folder, Open(path));
  if (folder.manifest().fingerprint() == manifest.fingerprint()) return folder;
  return absl::FailedPreconditionError(absl::StrCat(
      path, " holds another sweep (", Difference(folder.manifest(), manifest),
      "); give --folder another one, or remove it"));
}

absl::StatusOr<SweepFolder> SweepFolder::Open(const std::string& path) {
  SweepManifest manifest;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(ManifestPath(path), manifest));
  return SweepFolder(path, std::move(manifest));
}

std::string SweepFolder::CellPath(const SweepCell& cell) const {
  return absl::StrCat(path_, "/cells/", cell.key());
}

SweepFolder::State SweepFolder::StateOf(const SweepCell& cell) const {
  if (PathExists(CellPath(cell) + "/record.textproto")) return State::kDone;
  return PathExists(CellPath(cell) + "/failed.txt") ? State::kFailed
                                                    : State::kOpen;
}

std::string SweepFolder::Failure(const SweepCell& cell) const {
  return ReadFile(CellPath(cell) + "/failed.txt").value_or("");
}

absl::Status SweepFolder::MarkFailed(const SweepCell& cell,
                                     const std::string& why) const {
  return WriteFileAtomically(CellPath(cell) + "/failed.txt", why);
}

absl::Status SweepFolder::ForgetFailure(const SweepCell& cell) const {
  const std::string file = CellPath(cell) + "/failed.txt";
  std::error_code error;
  fs::remove(file, error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(),
                             absl::StrCat("cannot remove ", file));
}

absl::StatusOr<const SweepCell*> SweepFolder::FindCell(
    const std::string& key) const {
  for (const SweepCell& cell : manifest_.cell())
    if (cell.key() == key) return &cell;
  return absl::NotFoundError(
      absl::StrCat("the sweep in ", path_, " has no cell \"", key, "\""));
}

absl::Status RunCell(const SweepFolder& folder, const SweepCell& cell,
                     int threads, const std::atomic<bool>* stop) {
  const std::string path = folder.CellPath(cell);
  KVMIX_ASSIGN_OR_RETURN(const FileLock lock, FileLock::Wait(path + "/lock"));
  if (folder.StateOf(cell) == SweepFolder::State::kDone)
    return absl::OkStatus();
  ExperimentConfig config = cell.config();
  config.set_threads(threads);
  config.set_output(folder.path());  // for profiles/
  const CellFolders folders = {
      .results = path,
      .full_precision = folder.path() + "/full_precision",
      .full_precision_gib = folder.manifest().full_precision_gib()};
  return RunExperiment(config, stop, &folders).status();
}

}  // namespace kvmix
