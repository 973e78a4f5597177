// KVTuner (Li et al., arXiv 2502.04420): a multi-objective evolutionary search,
// NSGA-II (pareto_solver.h), over the formats of every layer's keys and values,
// for few bytes and a small loss. The loss may be what the model really loses
// on the calibration prompts under a plan (plan_evaluator.h), which need not be
// a sum over layers, or the predicted sum. As in KVTuner, pairs of formats that
// are beaten in both are left out and layers may be searched in groups
// (layer_groups.h). Of the front that is found, the plan of least loss within
// the budget is taken.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/choice_allocator.h"
#include "kvmix/allocation/knapsack_solver.h"
#include "kvmix/allocation/layer_groups.h"
#include "kvmix/allocation/pareto_search.pb.h"
#include "kvmix/allocation/pareto_solver.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// The groups' pairs as a table of items.
ChoiceTable TableOf(const std::vector<LayerGroup>& groups) {
  ChoiceTable table;
  for (const LayerGroup& group : groups) {
    std::vector<Choice>& item = table.emplace_back();
    for (const FormatPair& pair : group.pairs)
      item.push_back({.bytes = pair.bytes, .loss = pair.loss});
  }
  return table;
}

// Choices of least predicted loss within budgets from the cheapest plan's bytes
// up to the whole one, evenly spaced; the dearest first.
std::vector<Genes> PredictedFront(const ChoiceTable& table, int64_t budget,
                                  int count) {
  const int64_t least = BytesOf(table, CheapestChoices(table));
  std::vector<Genes> front;
  for (int i = 0; i < count; ++i) {
    front.push_back(SolveKnapsack(
        table, least + (budget - least) * (count - 1 - i) / (count - 1)));
  }
  return front;
}

class ParetoSearch final : public ChoiceAllocator {
 public:
  explicit ParetoSearch(const ParetoSearchOptions& options)
      : ChoiceAllocator(options.trust_scores()), options_(options) {}

 protected:
  absl::StatusOr<std::vector<int>> Choose(
      const ChoiceTable& table,
      const AllocationContext& context) const override {
    const bool measured = options_.loss() != ParetoSearchOptions::PREDICTED;
    if (measured && context.evaluator == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "options.loss is ", ParetoSearchOptions::Loss_Name(options_.loss()),
          ", which runs the model under every plan, but there is no model "
          "here; use options { loss: PREDICTED }, or make the plan with kvmix "
          "plan and give it as plan_file"));
    }
    const std::vector<LayerGroup> groups =
        GroupLayers(table, options_.max_groups());
    const ChoiceTable pairs = TableOf(groups);
    FrontProblem problem;
    for (const std::vector<Choice>& item : pairs)
      problem.num_choices.push_back(static_cast<int>(item.size()));
    problem.bytes = [&](const Genes& genes) { return BytesOf(pairs, genes); };
    problem.losses = [&](absl::Span<const Genes> all) {
      return measured ? Measured(all, groups, context) : Predicted(all, pairs);
    };
    problem.budget_bytes = context.budget_bytes;
    problem.start = {CheapestChoices(pairs)};
    if (!options_.random_start()) {
      problem.start =
          PredictedFront(pairs, context.budget_bytes, options_.population());
    }
    KVMIX_ASSIGN_OR_RETURN(
        const std::vector<FrontPoint> front,
        SearchFront(problem, {.population = options_.population(),
                              .generations = options_.generations(),
                              .seed = context.seed,
                              .show_progress = measured}));
    return ChoicesOf(groups, front.back().genes);
  }

 private:
  static absl::StatusOr<std::vector<double>> Predicted(
      absl::Span<const Genes> all, const ChoiceTable& pairs) {
    std::vector<double> losses;
    for (const Genes& genes : all) losses.push_back(LossOf(pairs, genes));
    return losses;
  }

  absl::StatusOr<std::vector<double>> Measured(
      absl::Span<const Genes> all, const std::vector<LayerGroup>& groups,
      const AllocationContext& context) const {
    std::vector<CachePlan> plans;
    for (const Genes& genes : all)
      plans.push_back(PlanFromChoices(ChoicesOf(groups, genes), context));
    KVMIX_ASSIGN_OR_RETURN(const std::vector<PlanLoss> measured,
                           context.evaluator->Evaluate(plans));
    std::vector<double> losses;
    for (const PlanLoss& loss : measured) {
      losses.push_back(options_.loss() == ParetoSearchOptions::KL_DIVERGENCE
                           ? loss.kl_divergence
                           : loss.loss_difference);
    }
    return losses;
  }

  const ParetoSearchOptions options_;  // defaults filled in
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<ParetoSearchOptions>(
    "pareto_search",
    "NSGA-II over formats, bytes against predicted or measured loss (KVTuner)",
    [](ParetoSearchOptions options) -> Registry<BitAllocator>::Result {
      if (!ParetoSearchOptions::Loss_IsValid(options.loss())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "options.loss is ", options.loss(),
            " but must be PREDICTED (0), KL_DIVERGENCE (1) or LOSS_DIFFERENCE "
            "(2)"));
      }
      const bool measured = options.loss() != ParetoSearchOptions::PREDICTED;
      if (options.population() == 0) options.set_population(measured ? 24 : 48);
      if (options.generations() == 0)
        options.set_generations(measured ? 8 : 120);
      if (options.population() < 8 || options.population() % 4 != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("options.population is ", options.population(),
                         " but must be a multiple of 4, at least 8"));
      }
      KVMIX_RETURN_IF_ERROR(
          ValidateIsPositive(options.generations(), "options.generations"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.max_groups(), "options.max_groups"));
      return std::make_unique<ParetoSearch>(options);
    });

}  // namespace
}  // namespace kvmix
