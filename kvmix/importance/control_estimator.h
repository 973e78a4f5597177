// ControlEstimator: the frame of controls, whose scores depend on no prompt.
// What differs is the scores of a layer.
#pragma once

#include <string>
#include <utility>

#include "kvmix/importance/importance_estimator.h"

namespace kvmix {

class ControlEstimator : public ImportanceEstimator {
 public:
  explicit ControlEstimator(std::string name) : name_(std::move(name)) {}

  SignalSet RequiredSignals() const final { return {}; }
  absl::Status Start(const ProfileContext& context) final {
    context_ = context;
    return absl::OkStatus();
  }
  absl::Status Observe(const LayerTrace&) final { return absl::OkStatus(); }
  absl::StatusOr<ImportanceProfile> Finish() final {
    ImportanceProfile profile;
    profile.set_estimator(name_);
    profile.set_unit(ImportanceProfile::RANK_ONLY);
    for (int i = 0; i < context_.num_layers; ++i)
      SetScores(context_, i, *profile.add_layer());
    return profile;
  }

 protected:
  virtual void SetScores(const ProfileContext& context, int layer,
                         LayerImportance& scores) const = 0;

 private:
  const std::string name_;
  ProfileContext context_;
};

}  // namespace kvmix
