// Query energy: where the queries of a layer look, for quantizers that spend
// their bits by it. An error e_c in channel c of a key moves a score by q_c
// e_c, so that E q_c^2 is what an error there weighs.
//
// Keys before RoPE: an error e_c at position n is turned by R_n as the key is,
// so that the score moves by (R_n^T q)_c e_c. What an error weighs is the mean
// over queries of sum_n a_n (R_n^T q)_c^2, a_n being the attention that token n
// gets from the query; after RoPE the same sum is q_c^2. A pair of channels
// that turns fast has its mean energy in both, one that turns slowly each its
// own.
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
  SignalSet RequiredSignals() const override;
  absl::Status Start(const ProfileContext& context) override;
  absl::Status Observe(const LayerTrace& trace) override;
  // A profile of query energies alone.
  absl::StatusOr<ImportanceProfile> Finish() override;

 private:
  // [G][D] of each layer.
  using Energies = std::vector<std::vector<double>>;
  Energies after_rope_, before_rope_;
  int head_dim_ = 0;
};

}  // namespace kvmix
