// The formats that a method offers to its allocator, and what each of them
// makes a cache take.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/kv_cache.h"
#include "experiments/experiment.pb.h"
#include "kvmix/budget.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

// Formats of the method's candidates for this head_dim, from the fewest
// effective bits to the most, each once. Without candidates: what its quantizer
// offers, and its recency policy serves, of 2, 3, 4, 8 and 16 bits. Errors:
// bits that a quantizer does not offer, none for keys or for values.
absl::StatusOr<FormatChoices> OfferedFormats(const Method& method,
                                             int head_dim);

// Bytes that the ledger of a real cache bills for one KV head's keys (or
// values) in a format: codes, scales, zero points, sinks, the window that the
// recency policy leaves, slack and bookkeeping. No token is dropped: with an
// eviction policy a cache takes less. Each format is measured once.
class MeasuredCosts final : public LayerCosts {
 public:
  // chunks: lengths of the chunks in which the tokens arrive, which the window
  // may depend on.
  MeasuredCosts(const CacheShape& shape, std::vector<int64_t> chunks,
                std::shared_ptr<const RecencyPolicy> recency,
                CachePlan::FullPrecision full_precision = CachePlan::HALF);

  absl::StatusOr<int64_t> HeadBytes(Side side, int head,
                                    const QuantFormat& format) const override;
  int num_kv_heads() const override { return shape_.num_kv_heads; }
  int64_t elements() const override;

 private:
  // Of a cache of one layer.
  absl::StatusOr<int64_t> CacheBytes(const QuantFormat& key,
                                     const QuantFormat& value) const;
  // By how much more a KV head in the format takes than one in full precision.
  absl::StatusOr<int64_t> ChangeOf(Side side, const QuantFormat& format) const;

  const CacheShape shape_;  // of one layer
  const std::vector<int64_t> chunks_;
  const std::shared_ptr<const RecencyPolicy> recency_;
  const CachePlan::FullPrecision full_precision_;
  mutable std::optional<int64_t> full_;  // bytes of a cache in full precision
  mutable std::map<std::pair<Side, std::string>, int64_t> changes_;
};

}  // namespace kvmix
