// PlanFromBits: the last step of every allocator that is told bits, from these
// to formats.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

struct PartBits {
  int key = 0;
  int value = 0;
};

// bits: one for each part of the context, in order. Errors, with the layer:
// bits that the context's quantizer does not offer.
absl::StatusOr<CachePlan> PlanFromBits(const std::vector<PartBits>& bits,
                                       const AllocationContext& context);

// key, value: a format for each part of the context, in order.
CachePlan PlanFromFormats(const std::vector<QuantFormat>& key,
                          const std::vector<QuantFormat>& value,
                          const AllocationContext& context);

}  // namespace kvmix
