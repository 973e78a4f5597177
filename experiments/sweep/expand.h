// A sweep's cells: one resolved experiment for each combination of its axes'
// values, the last axis changing fastest.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/sweep/manifest.pb.h"

namespace kvmix {

// `config` is not resolved yet (LoadUnresolvedConfig). Errors: no sweep, an
// axis without values or with zipped fields of another number of them, a path
// that no cell has, two cells that are the same experiment.
absl::StatusOr<SweepManifest> ExpandSweep(const ExperimentConfig& config);

// The same, from a file, with the fingerprints of models and texts.
absl::StatusOr<SweepManifest> LoadSweep(
    const std::string& path, const std::vector<std::string>& overrides);

// "high_fraction=0.2 seed=3"; "all" without axes.
std::string CellName(const SweepManifest& manifest, const SweepCell& cell);

}  // namespace kvmix
