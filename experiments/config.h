// Reading and checking experiment configs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"

namespace kvmix {

// Reads a config with those it includes, applies "path=value" overrides in
// order, and resolves it. Errors carry file:line:column, or the path of the
// field.
absl::StatusOr<ExperimentConfig> LoadConfig(
    const std::string& path, const std::vector<std::string>& overrides);

// The same before it is resolved: what a sweep's cells start from.
absl::StatusOr<ExperimentConfig> LoadUnresolvedConfig(
    const std::string& path, const std::vector<std::string>& overrides);

// Fills in every default, gives every method its five components, reads plan
// files, and checks all that can be checked without model and text: ranges,
// names, and that every component can be made.
absl::Status ResolveConfig(ExperimentConfig& config);

// The part of a resolved config that decides results, as text; what is left out
// (threads, output, speed) changes none.
std::string ConfigText(const ExperimentConfig& config);

}  // namespace kvmix
