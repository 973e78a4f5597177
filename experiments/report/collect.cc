#include "experiments/report/collect.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "experiments/paths.h"
#include "experiments/sweep/expand.h"
#include "experiments/sweep/sweep_folder.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<ReportedRun> ReadRun(const std::string& folder) {
  ReportedRun run;
  KVMIX_RETURN_IF_ERROR(
      ReadTextProto(folder + "/record.textproto", run.record));
  KVMIX_RETURN_IF_ERROR(
      ReadTextProto(folder + "/config.textproto", run.config));
  if (PathExists(folder + "/timings.textproto")) {
    KVMIX_RETURN_IF_ERROR(
        ReadTextProto(folder + "/timings.textproto", run.timings));
  }
  std::set<std::string> keys;
  for (const MethodRecord& method : run.record.method()) {
    KVMIX_RETURN_IF_ERROR(AddContext(
        CheckHeads(method.plan(), run.record.model().num_kv_heads()),
        absl::StrCat(folder, "/record.textproto: method ", method.name())));
    if (method.profile().empty() || !keys.insert(method.profile()).second)
      continue;
    StoredProfile& profile = run.profiles.emplace_back();
    KVMIX_RETURN_IF_ERROR(ReadTextProto(
        absl::StrCat(folder, "/profile_", method.profile(), ".textproto"),
        profile));
  }
  return run;
}

// Throws nlohmann's exception if a field is of another kind.
ReportedBench BenchRowOf(const nlohmann::json& json,
                         const nlohmann::json& row) {
  return {.model = row.value("model", ""),
          .kv = row.value("kv", ""),
          .device = row.value("device", ""),
          .command = json.value("command", "kvmix bench --output=json"),
          .depth = row.value("depth", int64_t{0}),
          .batch = row.value("batch", int64_t{0}),
          .threads = row.value("threads", int64_t{0}),
          .prefill = row.value("prefill_tokens_per_second", 0.0),
          .decode = row.value("decode_tokens_per_second", 0.0),
          .decode_low = row.value("decode_low", 0.0),
          .decode_high = row.value("decode_high", 0.0),
          .throughput = row.value("throughput_tokens_per_second", 0.0),
          .throughput_low = row.value("throughput_low", 0.0),
          .throughput_high = row.value("throughput_high", 0.0),
          .cache_bytes = row.value("cache_bytes", 0.0),
          .weight_bytes = json.value("weight_bytes", 0.0)};
}

absl::Status ReadBench(const std::string& path, ReportInput& input) {
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.contains("rows")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not what kvmix bench --output=json writes"));
  }
  try {
    for (const auto& row : json["rows"]) {
      // Timings of estimators have none.
      if (row.contains("kv")) input.bench.push_back(BenchRowOf(json, row));
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is not what kvmix bench --output=json writes: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status ReadSweep(const std::string& path, const std::string& shown,
                       ReportInput& input) {
  KVMIX_ASSIGN_OR_RETURN(const SweepFolder folder, SweepFolder::Open(path));
  const SweepManifest& manifest = folder.manifest();
  for (const SweepCell& cell : manifest.cell()) {
    const std::string name =
        absl::StrCat(manifest.name(), " ", CellName(manifest, cell));
    const SweepFolder::State state = folder.StateOf(cell);
    if (state == SweepFolder::State::kFailed)
      input.failed.push_back(absl::StrCat(name, ": ", folder.Failure(cell)));
    if (state == SweepFolder::State::kOpen)
      input.failed.push_back(absl::StrCat(name, ": has not ended"));
    if (state != SweepFolder::State::kDone) continue;
    KVMIX_ASSIGN_OR_RETURN(ReportedRun run, ReadRun(folder.CellPath(cell)));
    run.folder = absl::StrCat(shown, "/cells/", cell.key());
    run.sweep = manifest.name();
    run.group = path;
    for (int i = 0; i < cell.label_size(); ++i)
      run.settings.push_back({manifest.axis(i).name(), cell.label(i)});
    input.runs.push_back(std::move(run));
  }
  return absl::OkStatus();
}

// path: on disk; shown: what the report calls it.
absl::Status ReadFolder(const std::string& path, const std::string& shown,
                        ReportInput& input) {
  if (PathExists(path + "/manifest.textproto"))
    return ReadSweep(path, shown, input);
  if (PathExists(path + "/record.textproto")) {
    KVMIX_ASSIGN_OR_RETURN(ReportedRun run, ReadRun(path));
    run.folder = shown;
    run.group = path;
    input.runs.push_back(std::move(run));
  }
  std::vector<fs::path> entries;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error))
    entries.push_back(entry.path());
  if (error) {
    return absl::ErrnoToStatus(error.value(),
                               absl::StrCat("cannot list ", path));
  }
  std::sort(entries.begin(), entries.end());
  for (const fs::path& entry : entries) {
    const std::string name = entry.filename().string();
    const std::string below = absl::StrCat(shown, "/", name);
    if (fs::is_directory(entry)) {
      KVMIX_RETURN_IF_ERROR(ReadFolder(entry.string(), below, input));
    } else if (absl::StartsWith(name, "bench") &&
               absl::EndsWith(name, ".json")) {
      KVMIX_RETURN_IF_ERROR(ReadBench(entry.string(), input));
    } else if (absl::StartsWith(name, "magnitudes") &&
               absl::EndsWith(name, ".textproto")) {
      KVMIX_RETURN_IF_ERROR(
          ReadTextProto(entry.string(), input.magnitudes.emplace_back()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string ReportedRun::Name() const {
  if (sweep.empty()) return record.name();
  std::vector<std::string> parts = {sweep};
  for (const auto& [axis, value] : settings)
    parts.push_back(absl::StrCat(axis, "=", value));
  return absl::StrJoin(parts, " ");
}

std::vector<RunGroup::Row> RunGroup::Rows() const {
  const bool same_everywhere =
      std::count(has_own_full_precision.begin(), has_own_full_precision.end(),
                 true) == 1;
  std::vector<Row> rows;
  for (size_t r = 0; r < runs.size(); ++r) {
    const RunRecord& record = runs[r]->record;
    for (int m = has_own_full_precision[r] ? 0 : 1; m < record.method_size();
         ++m) {
      std::string name = record.method(m).name();
      if (m > 0 || !same_everywhere) {
        for (const auto& [axis, value] : runs[r]->settings)
          absl::StrAppend(&name, " ", axis, "=", value);
      }
      rows.push_back({runs[r], m, std::move(name)});
    }
  }
  return rows;
}

std::vector<RunGroup> GroupRuns(const ReportInput& input) {
  std::vector<RunGroup> groups;
  std::set<std::string> seen;  // full precision, in the group
  for (const ReportedRun& run : input.runs) {
    if (groups.empty() || groups.back().runs[0]->group != run.group) {
      groups.push_back(
          {run.sweep.empty() ? run.record.name() : run.sweep, {}, {}});
      seen.clear();
    }
    std::string full;
    for (const DatasetRecord& dataset : run.record.method(0).dataset())
      full += dataset.SerializeAsString();
    groups.back().runs.push_back(&run);
    groups.back().has_own_full_precision.push_back(seen.insert(full).second);
  }
  return groups;
}

absl::StatusOr<ReportInput> CollectRecords(
    const std::vector<std::string>& folders) {
  ReportInput input;
  for (const std::string& folder : folders) {
    KVMIX_ASSIGN_OR_RETURN(const std::string path, ResolveInputPath(folder));
    const std::string shown =
        fs::path(path).lexically_normal().filename().string();
    KVMIX_RETURN_IF_ERROR(ReadFolder(path, shown.empty() ? "." : shown, input));
  }
  if (input.runs.empty() && input.bench.empty()) {
    return absl::NotFoundError(
        absl::StrCat("no record.textproto below ", absl::StrJoin(folders, ", "),
                     "; name folders that kvmix run or kvmix sweep wrote"));
  }
  return input;
}

}  // namespace kvmix
