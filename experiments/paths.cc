#include "experiments/paths.h"

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Folders below which the project's own files may lie: the runfiles of this
// program or of the test that runs it, and the checkout.
std::vector<fs::path> ProjectRoots() {
  std::vector<fs::path> roots;
  roots.push_back(ThisProgram() + ".runfiles/kvmix");
  const std::string runfiles = Environment("TEST_SRCDIR");
  if (!runfiles.empty()) roots.push_back(fs::path(runfiles) / "kvmix");
  const std::string workspace = Environment("BUILD_WORKSPACE_DIRECTORY");
  if (!workspace.empty()) roots.push_back(workspace);
  return roots;
}

}  // namespace

std::string ThisProgram() {
  std::error_code error;  // only without /proc
  return fs::read_symlink("/proc/self/exe", error).string();
}

bool PathExists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::string ResolvePath(const std::string& path) {
  const std::string typed_in = Environment("BUILD_WORKING_DIRECTORY");
  if (typed_in.empty() || fs::path(path).is_absolute()) return path;
  return (fs::path(typed_in) / path).lexically_normal().string();
}

absl::StatusOr<std::string> ResolveInputPath(const std::string& path) {
  const std::string typed = ResolvePath(path);
  if (PathExists(typed)) return typed;
  if (!fs::path(path).is_absolute()) {
    for (const fs::path& root : ProjectRoots()) {
      const std::string below = (root / path).string();
      if (PathExists(below)) return below;
    }
  }
  return absl::NotFoundError(absl::StrCat(typed, " does not exist"));
}

absl::StatusOr<std::string> ResolveModelPath(const std::string& path) {
  if (path == "embedded") return ResolveInputPath("models/embedded");
  if (path != "smollm2") return ResolveInputPath(path);
  std::string cache = Environment("KVMIX_CACHE");
  if (cache.empty()) cache = Environment("HOME") + "/.cache/kvmix";
  const std::string file = cache + "/smollm2-135m-instruct-q4_1.gguf";
  if (PathExists(file)) return file;
  return absl::NotFoundError(absl::StrCat(
      file, " does not exist; fetch it once with tools/fetch_smollm2.sh"));
}

}  // namespace kvmix
