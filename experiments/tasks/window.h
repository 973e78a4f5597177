// What the model is shown at once: tokens that start from an empty cache.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvmix {

// A continuation as a task judges it.
struct JudgedText {
  std::string text;
  double score = 0;  // in [0, 1]
};

struct Window {
  struct Span {
    int64_t begin = 0;  // index in tokens
    int64_t count = 0;
  };
  // All but the first are scored, unless the window is a prompt to continue.
  std::vector<int32_t> tokens;
  std::vector<Span> answers;
  int64_t prompt_tokens = 0;  // what EXACT_PREFILL takes at once
  int64_t words = 0;          // in the scored tokens, between white space

  std::string group;  // label of the prompt; "": none

  // Of multiple choice: windows of one item are its choices. -1: none.
  int item = -1;
  bool right_choice = false;
  int choice_length = 1;  // what its log-likelihood is divided by

  // Of a needle: where it stands. 0 tokens: no needle map.
  int context_tokens = 0;
  double depth = 0;

  // Above 0: `tokens` is a prompt, continued by at most so many tokens,
  // greedily.
  int continue_tokens = 0;
  // Whether a continuation is at its end; judged after every token.
  std::function<bool(absl::Span<const int32_t>)> is_finished;
  std::function<absl::StatusOr<JudgedText>(absl::Span<const int32_t>)> judge;
  std::string prompt;     // as text, for sheets that people read
  std::string reference;  // what the judge goes by; part of fingerprints
};

}  // namespace kvmix
