// The formats of least predicted loss within a budget, exactly: a knapsack over
// layers x {K, V} x formats (knapsack_solver.h). PM-KVQ (arXiv 2505.18610) and
// NVIDIA's Model-Optimizer choose bits by integer programming likewise.
#include <memory>
#include <vector>

#include "kvmix/allocation/choice_allocator.h"
#include "kvmix/allocation/knapsack.pb.h"
#include "kvmix/allocation/knapsack_solver.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

class Knapsack final : public ChoiceAllocator {
 public:
  using ChoiceAllocator::ChoiceAllocator;

 protected:
  absl::StatusOr<std::vector<int>> Choose(
      const ChoiceTable& table,
      const AllocationContext& context) const override {
    return SolveKnapsack(table, context.budget_bytes);
  }
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<KnapsackOptions>(
    "knapsack", "the formats of least predicted loss within a budget, exactly",
    [](const KnapsackOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<Knapsack>(options.trust_scores());
    });

}  // namespace
}  // namespace kvmix
