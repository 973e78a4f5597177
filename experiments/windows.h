// The token sequences that quality is measured on, and the prompts that
// profiles are made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {

// Tokens that start from an empty cache. All but the first are scored.
struct Window {
  struct Span {
    int64_t begin = 0;  // index in tokens
    int64_t count = 0;
  };
  std::vector<int32_t> tokens;
  std::vector<Span> answers;
  int64_t prompt_tokens = 0;  // what EXACT_PREFILL takes at once
  int64_t words = 0;          // in the scored tokens, between white space
};

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
