#include "experiments/sweep/expand.h"

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "experiments/config.h"
#include "experiments/field_path.h"
#include "experiments/loaded_model.h"
#include "experiments/paths.h"
#include "experiments/tasks/task.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int64_t kMostCells = 100000;

absl::Status CheckAxis(const Sweep::Axis& axis, const std::string& field) {
  if (axis.path().empty())
    return absl::InvalidArgumentError(absl::StrCat(field, ".path is empty"));
  if (axis.value().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " (", axis.path(), ") has no value"));
  }
  if (!axis.label().empty() && axis.label_size() != axis.value_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " (", axis.path(), ") has ", axis.value_size(),
                     " values but ", axis.label_size(), " labels"));
  }
  for (const Sweep::Axis& zipped : axis.zip()) {
    if (!zipped.zip().empty() || !zipped.label().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".zip (", zipped.path(),
                       ") has zip or label; only the axis itself takes them"));
    }
    if (zipped.value_size() == axis.value_size()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".zip (", zipped.path(), ") has ", zipped.value_size(),
        " values but ", axis.path(), ", with which it changes together, has ",
        axis.value_size()));
  }
  return absl::OkStatus();
}

// The axes with the seeds as one of them.
absl::StatusOr<std::vector<Sweep::Axis>> AxesOf(const Sweep& sweep) {
  std::vector<Sweep::Axis> axes(sweep.axis().begin(), sweep.axis().end());
  if (!sweep.seed().empty()) {
    Sweep::Axis& seeds = axes.emplace_back();
    seeds.set_path("seed");
    for (uint64_t seed : sweep.seed()) seeds.add_value(absl::StrCat(seed));
  }
  int64_t cells = 1;
  for (size_t i = 0; i < axes.size(); ++i) {
    KVMIX_RETURN_IF_ERROR(
        CheckAxis(axes[i], absl::StrCat("sweep.axis[", i, "]")));
    cells *= axes[i].value_size();
    if (cells <= kMostCells) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("sweep has more than ", kMostCells, " cells"));
  }
  return axes;
}

// For each axis the last parts of its path, as many as tell it from the others:
// "high_fraction", or "method[1].bits" beside "method[2].bits".
std::vector<std::string> ShortNames(const std::vector<Sweep::Axis>& axes) {
  std::vector<std::vector<std::string>> parts;
  for (const Sweep::Axis& axis : axes)
    parts.push_back(absl::StrSplit(axis.path(), '.'));
  const auto name = [&](size_t axis, size_t count) {
    const auto& all = parts[axis];
    return absl::StrJoin(all.end() - std::min(count, all.size()), all.end(),
                         ".");
  };
  std::vector<std::string> names;
  for (size_t i = 0; i < axes.size(); ++i) {
    size_t count = 1;
    const auto is_shared = [&] {
      for (size_t j = 0; j < axes.size(); ++j)
        if (j != i && name(j, count) == name(i, count)) return true;
      return false;
    };
    while (count < parts[i].size() && is_shared()) ++count;
    names.push_back(name(i, count));
  }
  return names;
}

absl::StatusOr<SweepCell> MakeCell(ExperimentConfig config,
                                   const std::vector<Sweep::Axis>& axes,
                                   const std::vector<int>& choice) {
  SweepCell cell;
  for (size_t i = 0; i < axes.size(); ++i) {
    const Sweep::Axis& axis = axes[i];
    const std::string field = absl::StrCat("sweep.axis[", i, "]");
    KVMIX_RETURN_IF_ERROR(AddContext(
        SetField(axis.path(), axis.value(choice[i]), config), field));
    for (const Sweep::Axis& zipped : axis.zip()) {
      KVMIX_RETURN_IF_ERROR(
          AddContext(SetField(zipped.path(), zipped.value(choice[i]), config),
                     field + ".zip"));
    }
    cell.add_label(axis.label().empty() ? axis.value(choice[i])
                                        : axis.label(choice[i]));
  }
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  cell.set_key(Fingerprint(ConfigText(config)));
  *cell.mutable_config() = std::move(config);
  return cell;
}

// Counts through all combinations, the last digit fastest; false after the
// last.
bool Next(const std::vector<Sweep::Axis>& axes, std::vector<int>& choice) {
  for (size_t i = axes.size(); i-- > 0;) {
    if (++choice[i] < axes[i].value_size()) return true;
    choice[i] = 0;
  }
  return false;
}

// The files that a dataset's windows come from, as the config names them.
absl::StatusOr<std::vector<std::string>> FilesOf(const Dataset& dataset) {
  if (!dataset.path().empty()) return std::vector<std::string>{dataset.path()};
  if (!dataset.has_task()) return std::vector<std::string>();
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Task> task,
                         Registry<Task>::Get().Make(dataset.task(), "task"));
  return task->Files();
}

// Models and texts of all cells.
absl::Status AddInputs(SweepManifest& manifest) {
  std::map<std::string, std::string> inputs;
  for (const SweepCell& cell : manifest.cell()) {
    const std::string& model = cell.config().model().path();
    if (!inputs.contains(model)) {
      KVMIX_ASSIGN_OR_RETURN(const std::string path, ResolveModelPath(model));
      KVMIX_ASSIGN_OR_RETURN(inputs[model], FingerprintModel(path));
    }
    std::vector<const Dataset*> datasets = {&cell.config().profile().dataset()};
    for (const Dataset& dataset : cell.config().dataset())
      datasets.push_back(&dataset);
    for (const Dataset* dataset : datasets) {
      KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> files,
                             FilesOf(*dataset));
      for (const std::string& file : files) {
        if (inputs.contains(file)) continue;
        KVMIX_ASSIGN_OR_RETURN(const std::string path, ResolveInputPath(file));
        KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
        inputs[file] = Fingerprint(text);
      }
    }
  }
  for (const auto& [path, fingerprint] : inputs) {
    SweepInput& input = *manifest.add_input();
    input.set_path(path);
    input.set_fingerprint(fingerprint);
  }
  return absl::OkStatus();
}

std::string ManifestFingerprint(const SweepManifest& manifest) {
  SweepManifest decisive = manifest;
  for (SweepCell& cell : *decisive.mutable_cell()) {
    cell.mutable_config()->clear_threads();
    cell.mutable_config()->clear_output();
  }
  return Fingerprint(PrintTextProto(decisive));
}

}  // namespace

absl::StatusOr<SweepManifest> ExpandSweep(const ExperimentConfig& config) {
  if (!config.has_sweep()) {
    return absl::InvalidArgumentError(
        "has no sweep, so there is one experiment; run it with kvmix run, or "
        "add sweep { axis { path: \"seed\" value: \"1\" value: \"2\" } }");
  }
  KVMIX_ASSIGN_OR_RETURN(const std::vector<Sweep::Axis> axes,
                         AxesOf(config.sweep()));
  SweepManifest manifest;
  manifest.set_name(config.name());
  const double gib = config.sweep().full_precision_gib();
  manifest.set_full_precision_gib(gib == 0 ? 4 : gib);
  const std::vector<std::string> names = ShortNames(axes);
  for (size_t i = 0; i < axes.size(); ++i) {
    SweepAxis& axis = *manifest.add_axis();
    axis.set_name(names[i]);
    axis.add_path(axes[i].path());
    for (const Sweep::Axis& zipped : axes[i].zip())
      axis.add_path(zipped.path());
  }
  ExperimentConfig base = config;
  base.clear_sweep();
  std::vector<int> choice(axes.size(), 0);
  std::map<std::string, std::string> seen;  // key -> name
  do {
    absl::StatusOr<SweepCell> cell = MakeCell(base, axes, choice);
    if (!cell.ok()) {
      SweepCell failed;
      for (size_t i = 0; i < axes.size(); ++i)
        failed.add_label(axes[i].value(choice[i]));
      return AddContext(cell.status(),
                        absl::StrCat("cell ", CellName(manifest, failed)));
    }
    const std::string name = CellName(manifest, *cell);
    const auto [at, is_new] = seen.emplace(cell->key(), name);
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("cells ", at->second, " and ", name,
                       " are the same experiment; is a value given twice?"));
    }
    *manifest.add_cell() = *std::move(cell);
  } while (Next(axes, choice));
  manifest.set_fingerprint(ManifestFingerprint(manifest));
  return manifest;
}

absl::StatusOr<SweepManifest> LoadSweep(
    const std::string& path, const std::vector<std::string>& overrides) {
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config,
                         LoadUnresolvedConfig(path, overrides));
  absl::StatusOr<SweepManifest> manifest = ExpandSweep(config);
  if (!manifest.ok()) return AddContext(manifest.status(), path);
  KVMIX_RETURN_IF_ERROR(AddInputs(*manifest));
  manifest->set_fingerprint(ManifestFingerprint(*manifest));
  return manifest;
}

std::string CellName(const SweepManifest& manifest, const SweepCell& cell) {
  std::vector<std::string> parts;
  for (int i = 0; i < cell.label_size(); ++i)
    parts.push_back(absl::StrCat(manifest.axis(i).name(), "=", cell.label(i)));
  return parts.empty() ? "all" : absl::StrJoin(parts, " ");
}

}  // namespace kvmix
