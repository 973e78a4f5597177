// BitAllocator: turns an importance profile into a cache plan.
//
// It sees scores, never traces. Bits become formats through the experiment's
// quantizer, whose effective bits an allocator may also ask for.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/importance_profile.pb.h"
#include "quant/quantizer.h"

namespace kvmix {

struct AllocationContext {
  int num_layers = 0;
  int head_dim = 0;
  uint64_t seed = 0;
  const Quantizer* quantizer = nullptr;
};

class BitAllocator {
 public:
  virtual ~BitAllocator() = default;
  // False: the plan does not depend on scores, and no profile need be made;
  // `profile` may then be empty.
  virtual bool NeedsProfile() const = 0;
  // The plan has a format for every layer. Errors: a profile of another number
  // of layers, or of a unit that the allocator cannot use; bits that the
  // quantizer does not offer.
  virtual absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const = 0;
};

}  // namespace kvmix
