// What a recency policy says about one stream, counted and checked: the same
// for caches on the CPU and on a device.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {

// Whether a chunk quantizes when it is appended; else when it is finished.
inline bool QuantizesBeforeAttention(const RecencyPolicy& recency,
                                     int64_t chunk_tokens) {
  return chunk_tokens == 1 &&
         recency.flush_order() == FlushOrder::kBeforeAttention;
}

// The window's oldest tokens that leave it now. Internal error: a count that
// breaks the policy's contract.
inline absl::StatusOr<int64_t> TokensLeaving(const RecencyPolicy& recency,
                                             const WindowState& window) {
  const int64_t count = recency.TokensToQuantize(window);
  if (count < 0 || count > window.window_tokens ||
      count % window.granularity != 0)
    return absl::InternalError(
        absl::StrCat("the recency policy wants to quantize ", count,
                     " tokens of a window of ", window.window_tokens,
                     " with granularity ", window.granularity));
  return count;
}

}  // namespace kvmix
