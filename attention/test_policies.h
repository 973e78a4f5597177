// Small recency and eviction policies for tests of the cache and of attention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix::testing {

// Keeps int(ratio * window) + keep tokens, or a few more so that what leaves is
// a multiple of `step` (and of the granularity).
struct KeepRecentOptions {
  double ratio = 0;
  int64_t keep = 0;
  int64_t sinks = 0;
  int64_t step = 1;
  FlushOrder order = FlushOrder::kBeforeAttention;
};

class KeepRecent final : public RecencyPolicy {
 public:
  explicit KeepRecent(const KeepRecentOptions& options) : options_(options) {}
  FlushOrder flush_order() const override { return options_.order; }
  int64_t sink_tokens() const override { return options_.sinks; }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    const int64_t step =
        state.granularity > 1 ? int64_t{state.granularity} : options_.step;
    const int64_t kept =
        options_.keep +
        static_cast<int64_t>(options_.ratio *
                             static_cast<double>(state.window_tokens));
    return std::max<int64_t>(0, state.window_tokens - kept) / step * step;
  }

 private:
  const KeepRecentOptions options_;
};

class KeepAll final : public EvictionPolicy {
 public:
  bool evicts() const override { return false; }
  bool WouldDrop(const EvictionState&) const override { return false; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    return std::vector<TokenList>(state.heads.size());
  }
};

}  // namespace kvmix::testing
