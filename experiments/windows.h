// The token sequences that quality is measured on, and the prompts that
// profiles are made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/tasks/window.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {

// The windows of a dataset. Errors: a missing file, invalid UTF-8, an empty
// text, windows longer than `max_position`, a token outside the vocabulary.
absl::StatusOr<std::vector<Window>> LoadWindows(const Dataset& dataset,
                                                uint64_t seed,
                                                const Tokenizer& tokenizer,
                                                int64_t max_position);

// Token ids of the config's prompts; see ProfileConfig. Prompts that come from
// the first dataset lie behind its windows. Errors: too few.
absl::StatusOr<std::vector<std::vector<int32_t>>> LoadPrompts(
    const ExperimentConfig& config, const Tokenizer& tokenizer,
    int64_t max_position);

// Of the ids, for keys of profiles.
std::string FingerprintOf(const std::vector<std::vector<int32_t>>& sequences);

}  // namespace kvmix
