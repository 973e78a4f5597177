// TraceEstimator: the frame of estimators that score a layer on a prompt by
// what its trace shows, averaged over prompts. What differs, the formula, is
// ScoresOf. The scores only rank layers.
#pragma once

#include <string>
#include <utility>

#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {

class TraceEstimator : public ImportanceEstimator {
 public:
  explicit TraceEstimator(std::string name) : name_(std::move(name)) {}

  absl::Status Start(const ProfileContext& context) final {
    scores_ = ScoreAccumulator(context.num_layers);
    return absl::OkStatus();
  }
  absl::Status Observe(const LayerTrace& trace) final {
    return scores_.Add(trace, ScoresOf(trace));
  }
  absl::StatusOr<ImportanceProfile> Finish() final {
    return scores_.Profile(name_, ImportanceProfile::RANK_ONLY);
  }

 protected:
  virtual LayerScores ScoresOf(const LayerTrace& trace) const = 0;

 private:
  const std::string name_;
  ScoreAccumulator scores_;
};

}  // namespace kvmix
