// Starts from the cheapest formats and takes, one after the other, the step to
// a dearer format that saves the most predicted loss for each byte, as long as
// it fits. Optimal where losses fall convexly and every byte of the budget can
// be spent; knapsack shows how far off it is elsewhere. Of equal steps the
// earlier layer's, keys before values, comes first.
#include <memory>
#include <vector>

#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/allocation/greedy.pb.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

class Greedy final : public BitAllocator {
 public:
  explicit Greedy(const GreedyOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return true; }
  bool KeepsBudget() const override { return true; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const override {
    KVMIX_ASSIGN_OR_RETURN(
        const ChoiceTable table,
        LossesOfChoices(profile, context, options_.trust_scores()));
    std::vector<int> chosen = CheapestChoices(table);
    TakeBestSteps(table, context.budget_bytes, chosen);
    return PlanFromChoices(chosen, *context.choices);
  }

 private:
  const GreedyOptions options_;
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<GreedyOptions>(
    "greedy",
    "the best step in loss for each byte, again and again, within a budget",
    [](const GreedyOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<Greedy>(options);
    });

}  // namespace
}  // namespace kvmix
