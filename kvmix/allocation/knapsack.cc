// The formats of least predicted loss within a budget, exactly: a knapsack over
// layers x {K, V} x formats (knapsack_solver.h). PM-KVQ (arXiv 2505.18610) and
// NVIDIA's Model-Optimizer choose bits by integer programming likewise.
#include <memory>

#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/allocation/knapsack.pb.h"
#include "kvmix/allocation/knapsack_solver.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

class Knapsack final : public BitAllocator {
 public:
  explicit Knapsack(const KnapsackOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return true; }
  bool KeepsBudget() const override { return true; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const override {
    KVMIX_ASSIGN_OR_RETURN(
        const ChoiceTable table,
        LossesOfChoices(profile, context, options_.trust_scores()));
    return PlanFromChoices(SolveKnapsack(table, context.budget_bytes),
                           *context.choices);
  }

 private:
  const KnapsackOptions options_;
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<KnapsackOptions>(
    "knapsack", "the formats of least predicted loss within a budget, exactly",
    [](const KnapsackOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<Knapsack>(options);
    });

}  // namespace
}  // namespace kvmix
