// Starts from the cheapest formats and takes, one after the other, the step to
// a dearer format that saves the most predicted loss for each byte, as long as
// it fits. Optimal where losses fall convexly and every byte of the budget can
// be spent; knapsack shows how far off it is elsewhere. Of equal steps the
// earlier layer's, keys before values, comes first.
#include <memory>
#include <vector>

#include "kvmix/allocation/choice_allocator.h"
#include "kvmix/allocation/greedy.pb.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

class Greedy final : public ChoiceAllocator {
 public:
  using ChoiceAllocator::ChoiceAllocator;

 protected:
  absl::StatusOr<std::vector<int>> Choose(
      const ChoiceTable& table,
      const AllocationContext& context) const override {
    std::vector<int> chosen = CheapestChoices(table);
    TakeBestSteps(table, context.budget_bytes, chosen);
    return chosen;
  }
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<GreedyOptions>(
    "greedy",
    "the best step in loss for each byte, again and again, within a budget",
    [](const GreedyOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<Greedy>(options.trust_scores());
    });

}  // namespace
}  // namespace kvmix
