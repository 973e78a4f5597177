// RankLayers: layers in the order in which allocators that only rank them hand
// out bits.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/importance_profile.pb.h"

namespace kvmix {

// Layers from the highest score to the lowest, ranked apart by keys and by
// values. Of equal scores the earlier layer comes first.
struct LayerRanking {
  std::vector<int> key, value;  // [L]
};

// Errors: a profile of another number of layers, or a score that is not finite.
absl::StatusOr<LayerRanking> RankLayers(const ImportanceProfile& profile,
                                        int num_layers);

// floor(share * count); 0.29 of 100 is 29, though the double product is a
// little less.
int FloorOfShare(double share, int count);

// An error that says what to do if the profile is of another model.
absl::Status CheckNumLayers(const ImportanceProfile& profile, int num_layers);

}  // namespace kvmix
