// Windows of synthetic documents, and what all windows of texts share.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/synthetic/synthetic_text.h"
#include "experiments/tasks/window.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {

// BOS, if the tokenizer puts it in front of a text.
absl::StatusOr<std::optional<int32_t>> LeadingBos(const Tokenizer& tokenizer);

// Tokens without special ones, behind BOS if there is one.
Window TextWindow(absl::Span<const int32_t> text, std::optional<int32_t> bos,
                  const Tokenizer& tokenizer);

// Errors: a tokenizer that does not keep the bytes of a text.
absl::StatusOr<Window> DocumentWindow(const SyntheticDocument& document,
                                      const Tokenizer& tokenizer);

}  // namespace kvmix
