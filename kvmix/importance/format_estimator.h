// FormatEstimator: the frame of estimators that put the actual quantization
// error of every format offered into a formula. What differs, the formula, is
// LossOf.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"
#include "kvmix/importance/state_quantizer.h"

namespace kvmix {

// Of a layer's keys or values in one format, finite and at least 0.
struct SideLoss {
  double layer = 0;
  std::vector<double> heads = {};  // [G]
};

class FormatEstimator : public ImportanceEstimator {
 public:
  FormatEstimator(std::string name, ImportanceProfile::Unit unit)
      : name_(std::move(name)), unit_(unit) {}

  bool NeedsFormats() const final { return true; }
  absl::Status Start(const ProfileContext& context) final;
  absl::Status Observe(const LayerTrace& trace) final;
  absl::StatusOr<ImportanceProfile> Finish() final;

 protected:
  // Once for every trace, before LossOf.
  virtual void StartTrace(const LayerTrace&) {}
  // error [T, G, D]: of StateQuantizer.
  virtual SideLoss LossOf(const LayerTrace& trace, Side side,
                          const std::vector<float>& error) const = 0;

 private:
  void AddSide(const LayerTrace& trace, Side side, LayerScores& scores) const;

  const std::string name_;
  const ImportanceProfile::Unit unit_;
  std::optional<StateQuantizer> quantizer_;
  FormatChoices formats_;
  CachePlan::Granularity granularity_ = CachePlan::LAYER;
  ScoreAccumulator scores_;
};

}  // namespace kvmix
