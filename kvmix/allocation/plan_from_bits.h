// PlanFromBits: the last step of every allocator, from bits to formats.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

struct LayerBits {
  int key = 0;
  int value = 0;
};

// One LayerBits for each layer, in order. Errors, with the layer: bits that the
// context's quantizer does not offer.
absl::StatusOr<CachePlan> PlanFromBits(const std::vector<LayerBits>& layers,
                                       const AllocationContext& context);

}  // namespace kvmix
