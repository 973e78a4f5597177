// TrialEstimator: the frame of estimators that run the model with the keys or
// the values of one layer, or of one KV head, changed (single_change_trials.h).
// What differs is what the other layers hold, and what counts as cost.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/single_change_trials.h"

namespace kvmix {

class TrialEstimator final : public ImportanceEstimator {
 public:
  TrialEstimator(std::string name, SingleChangeTrials::Base base,
                 SingleChangeTrials::Cost cost)
      : name_(std::move(name)), base_(base), cost_(cost) {}

  SignalSet RequiredSignals() const override { return {}; }
  bool NeedsFormats() const override { return true; }
  bool NeedsTrials() const override { return true; }
  absl::Status Start(const ProfileContext& context) override {
    trials_ = SingleChangeTrials(context, base_, cost_);
    return absl::OkStatus();
  }
  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }
  std::vector<CachePlan> TrialPlans() const override { return trials_.plans(); }
  absl::Status ObserveTrial(const TrialResult& result) override {
    return trials_.Observe(result);
  }
  absl::StatusOr<ImportanceProfile> Finish() override {
    return trials_.Profile(name_);
  }

 private:
  const std::string name_;
  const SingleChangeTrials::Base base_;
  const SingleChangeTrials::Cost cost_;
  SingleChangeTrials trials_;
};

}  // namespace kvmix
