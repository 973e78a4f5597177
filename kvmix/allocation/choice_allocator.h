// ChoiceAllocator: the frame of allocators that choose in a table of bytes and
// predicted losses (choice_table.h) within a budget. What differs is how.
#pragma once

#include <vector>

#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

class ChoiceAllocator : public BitAllocator {
 public:
  // trust_scores: see LossesOfChoices.
  explicit ChoiceAllocator(bool trust_scores) : trust_scores_(trust_scores) {}

  bool NeedsProfile() const final { return true; }
  bool KeepsBudget() const final { return true; }
  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const final {
    KVMIX_ASSIGN_OR_RETURN(const ChoiceTable table,
                           LossesOfChoices(profile, context, trust_scores_));
    KVMIX_ASSIGN_OR_RETURN(const std::vector<int> chosen,
                           Choose(table, context));
    return PlanFromChoices(chosen, context);
  }

 protected:
  // A choice for every item, within context.budget_bytes, which the cheapest
  // choices do not exceed.
  virtual absl::StatusOr<std::vector<int>> Choose(
      const ChoiceTable& table, const AllocationContext& context) const = 0;

 private:
  const bool trust_scores_;
};

}  // namespace kvmix
