// WrappedEviction: a policy that takes everything from another one but what it
// decides itself, so that wrappers may stand around wrappers.
#pragma once

#include <memory>
#include <utility>

#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {

class WrappedEviction : public ScoredEviction {
 public:
  explicit WrappedEviction(std::unique_ptr<ScoredEviction> inner)
      : ScoredEviction(inner->budget()), inner_(std::move(inner)) {}
  EvictionSignals signals() const final { return inner_->signals(); }
  absl::StatusOr<QuantFormat> DemotionFormat(Side side,
                                             int head_dim) const override {
    return inner_->DemotionFormat(side, head_dim);
  }
  void Score(const EvictionState& state, int head, float* scores) const final {
    inner_->Score(state, head, scores);
  }
  std::vector<int64_t> Keep(const EvictionState& state) const override {
    return inner_->Keep(state);
  }
  std::vector<int64_t> KeepByScores(
      const EvictionState& state,
      const std::vector<std::vector<float>>& scores) const override {
    return inner_->KeepByScores(state, scores);
  }

 protected:
  const ScoredEviction& inner() const { return *inner_; }

 private:
  const std::unique_ptr<ScoredEviction> inner_;
};

}  // namespace kvmix
