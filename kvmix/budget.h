// Budget: the bits that an element of the cache takes under a plan.
//
// Nominal bits count codes alone, as papers quote them ("k2.19v2.38").
// Effective bits count scales and zero points too: what memory is really spent.
// Both are means over layers of equal shape, and of packed blocks; the window
// in full precision, which depends on the recency policy, comes on top.
#pragma once

#include "absl/status/statusor.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

struct AverageBits {
  double nominal = 0;
  double effective = 0;
};

struct PlanBits {
  AverageBits key;
  AverageBits value;
  // Of packed blocks against half precision.
  double compression() const { return 32 / (key.effective + value.effective); }
};

// Errors: an empty plan; a layer without a format, or with one that its
// quantizer refuses.
absl::StatusOr<PlanBits> BitsOfPlan(const CachePlan& plan, int head_dim);

}  // namespace kvmix
