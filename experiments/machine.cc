#include "experiments/machine.h"

#include <hwy/highway.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kvmix/base/file.h"

namespace kvmix {
namespace {

// The rest of the first line of `path` that starts with `key`, or "".
std::string LineAfter(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    if (absl::ConsumePrefix(&rest, key)) {
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t:"), rest.size()));
      return std::string(rest);
    }
  }
  return "";
}

// A line of this process's status that gives kibibytes.
int64_t StatusBytes(const char* key) {
  const std::string line = LineAfter("/proc/self/status", key);
  int64_t kibibytes = 0;
  if (!absl::SimpleAtoi(line.substr(0, line.find(' ')), &kibibytes)) return 0;
  return kibibytes * 1024;
}

std::string OrUnknown(std::string text) {
  return text.empty() ? "unknown" : text;
}

}  // namespace

std::string CpuName() {
  return OrUnknown(LineAfter("/proc/cpuinfo", "model name"));
}

std::string InstructionSet() {
  // Targets are bits; a better one is a lower bit.
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(targets & -targets);
}

std::string CompilerName() {
#ifdef __clang__
  return absl::StrCat("Clang ", __VERSION__);
#else
  return absl::StrCat("GCC ", __VERSION__);
#endif
}

std::string CheckoutCommit() {
  const char* workspace = std::getenv("BUILD_WORKSPACE_DIRECTORY");
  if (workspace == nullptr) return "unknown";
  const std::string git = absl::StrCat(workspace, "/.git/");
  const auto head = ReadFile(git + "HEAD");
  if (!head.ok()) return "unknown";
  absl::string_view commit = absl::StripAsciiWhitespace(*head);
  if (!absl::ConsumePrefix(&commit, "ref: ")) return std::string(commit);
  const auto branch = ReadFile(absl::StrCat(git, commit));
  if (branch.ok()) return std::string(absl::StripAsciiWhitespace(*branch));
  const auto packed = ReadFile(git + "packed-refs");
  if (packed.ok()) {
    for (absl::string_view line : absl::StrSplit(*packed, '\n'))
      if (absl::ConsumeSuffix(&line, absl::StrCat(" ", commit)))
        return std::string(line);
  }
  return "unknown";
}

int64_t ResidentBytes() { return StatusBytes("VmRSS:"); }

int64_t PeakResidentBytes() { return StatusBytes("VmHWM:"); }

}  // namespace kvmix
