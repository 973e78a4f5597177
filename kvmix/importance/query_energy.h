// Query energy: where the queries of a layer look, for quantizers that spend
// their bits by it. An error e_c in channel c of a key moves a score by q_c
// e_c, so that E q_c^2 is what an error there weighs.
#pragma once

#include <vector>

#include "kvmix/importance/importance_estimator.h"

namespace kvmix {

// True if a quantizer of one of the formats wants it. Errors: an unknown one.
absl::StatusOr<bool> WantQueryEnergy(const FormatChoices& formats);

// Formats of `plan` as they are best for the layers' queries, if the profile
// has seen them (LayerImportance::query_energy); no format changes its bytes.
absl::Status CalibratePlan(const ImportanceProfile& profile, CachePlan& plan);

// Shown traces like an estimator; ranks nothing.
class QueryEnergy final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {Signal::kQueryStates}; }
  absl::Status Start(const ProfileContext& context) override;
  absl::Status Observe(const LayerTrace& trace) override;
  // A profile of query_energy alone.
  absl::StatusOr<ImportanceProfile> Finish() override;

 private:
  // Sums of squares, [G][D] of each layer.
  std::vector<std::vector<double>> squares_;
  int head_dim_ = 0;
};

}  // namespace kvmix
