// Forward passes against the clock: what speed of prefill and of decode is
// made of, here and in every benchmark.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/kv_cache.h"
#include "models/transformer.h"

namespace kvmix {

// One cache a sequence; they are passed as one batch.
using CacheBatch = std::vector<std::unique_ptr<KvCache>>;

// Seconds of one pass that appends `tokens` to every sequence in one chunk each
// and makes the logits of the last token. next: each sequence's most likely
// successor.
absl::StatusOr<double> TimePrefill(Transformer& model, const CacheBatch& caches,
                                   absl::Span<const int32_t> tokens,
                                   std::vector<int32_t>& next);

// Seconds of `steps` passes that append one token each to every sequence: first
// `next`, then whatever is most likely. next: as above, after the last step.
absl::StatusOr<double> TimeDecode(Transformer& model, const CacheBatch& caches,
                                  int steps, std::vector<int32_t>& next);

}  // namespace kvmix
