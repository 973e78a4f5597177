// RankParts: layers, or KV heads at head granularity, in the order in which
// allocators that only rank them hand out bits.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/importance_profile.pb.h"

namespace kvmix {

// An error that says what to do if the profile is of another model.
absl::Status CheckNumLayers(const ImportanceProfile& profile,
                            const AllocationContext& context);

// Scores of the keys (values) of every part. Errors: a profile of another
// number of layers, or one without scores of single KV heads where the context
// tells them apart.
absl::StatusOr<std::vector<double>> ScoresOfParts(
    const ImportanceProfile& profile, Side side,
    const AllocationContext& context);

// Parts from the highest score to the lowest, ranked apart by keys and by
// values. Of equal scores the earlier part comes first.
struct PartRanking {
  std::vector<int> key, value;  // [parts]
};

// Errors: as above, and a score that is not finite.
absl::StatusOr<PartRanking> RankParts(const ImportanceProfile& profile,
                                      const AllocationContext& context);

// floor(share * count); 0.29 of 100 is 29, though the double product is a
// little less.
int FloorOfShare(double share, int count);

}  // namespace kvmix
