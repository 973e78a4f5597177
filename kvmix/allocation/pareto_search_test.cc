// What pareto_search chooses. That it keeps to the budget is in
// conformance_test.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/allocation/budget_problem.h"
#include "kvmix/allocation/pareto_search.pb.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

Component Search(const ParetoSearchOptions& options) {
  Component component;
  component.set_name("pareto_search");
  component.mutable_options()->PackFrom(options);
  return component;
}

// Separable losses, where the exact answer is known: 12 items, 5 formats.
TEST(ParetoSearchTest, ComesNearTheKnapsacksOptimumFromARandomStart) {
  ParetoSearchOptions options;
  options.set_random_start(true);
  options.set_population(80);
  options.set_generations(200);
  double sum_of_ratios = 0;
  for (uint64_t stream = 0; stream < 8; ++stream) {
    BudgetProblem problem({2, 3, 4, 8, 16}, 6);
    problem.SetRandomLosses(stream);
    problem.budget_bytes = 12 * 280 + 100 * static_cast<int64_t>(stream);
    ASSERT_OK_AND_ASSIGN(const CachePlan best, problem.Allocate("knapsack"));
    ASSERT_OK_AND_ASSIGN(const CachePlan found,
                         problem.Allocate(Search(options)));
    const double ratio = problem.Loss(found) / problem.Loss(best);
    EXPECT_GE(ratio, 1 - 1e-12);
    EXPECT_LE(ratio, 1.1);
    sum_of_ratios += ratio;
  }
  EXPECT_LE(sum_of_ratios / 8, 1.02);
}

TEST(ParetoSearchTest, StartsFromThePredictedFront) {
  ParetoSearchOptions options;
  options.set_generations(1);
  for (uint64_t stream = 0; stream < 10; ++stream) {
    BudgetProblem problem({2, 3, 4, 8, 16}, 12);
    problem.SetRandomLosses(stream);
    problem.budget_bytes = 24 * 250 + 37 * static_cast<int64_t>(stream);
    ASSERT_OK_AND_ASSIGN(const CachePlan found,
                         problem.Allocate(Search(options)));
    ASSERT_OK_AND_ASSIGN(const CachePlan best, problem.Allocate("knapsack"));
    EXPECT_DOUBLE_EQ(problem.Loss(best), problem.Loss(found));
  }
}

// A model that the prediction is wrong about: its last layer loses what is
// predicted of the first, and so on.
class ReversedModel final : public PlanEvaluator {
 public:
  explicit ReversedModel(const BudgetProblem& problem) : problem_(problem) {}
  absl::StatusOr<std::vector<PlanLoss>> Evaluate(
      absl::Span<const CachePlan> plans) const override {
    std::vector<PlanLoss> losses;
    for (const CachePlan& plan : plans) {
      const double loss = Loss(plan);
      losses.push_back({.loss_difference = -loss, .kl_divergence = loss});
      EXPECT_OK(CheckBudget(plan, problem_.budget_bytes, problem_.costs));
    }
    evaluated_ += static_cast<int64_t>(plans.size());
    return losses;
  }
  double Loss(const CachePlan& plan) const {
    CachePlan reversed = plan;
    std::reverse(reversed.mutable_layer()->begin(),
                 reversed.mutable_layer()->end());
    return problem_.Loss(reversed);
  }
  int64_t evaluated() const { return evaluated_; }

 private:
  const BudgetProblem& problem_;
  mutable int64_t evaluated_ = 0;
};

absl::StatusOr<CachePlan> AllocateWith(const PlanEvaluator& evaluator,
                                       const BudgetProblem& problem,
                                       const ParetoSearchOptions& options) {
  KVMIX_ASSIGN_OR_RETURN(
      const auto allocator,
      Registry<BitAllocator>::Get().Make(Search(options), "bit_allocator"));
  AllocationContext context = problem.Context();
  context.evaluator = &evaluator;
  return allocator->Allocate(problem.profile, context);
}

TEST(ParetoSearchTest, WhatIsMeasuredCountsNotWhatIsPredicted) {
  BudgetProblem problem({2, 3, 4, 8}, 6);
  problem.SetRandomLosses(4);
  problem.budget_bytes = 12 * 330;
  const ReversedModel model(problem);
  ASSERT_OK_AND_ASSIGN(const CachePlan predicted, problem.Allocate("knapsack"));
  ParetoSearchOptions options;
  options.set_loss(ParetoSearchOptions::KL_DIVERGENCE);
  options.set_generations(30);
  ASSERT_OK_AND_ASSIGN(const CachePlan measured,
                       AllocateWith(model, problem, options));
  EXPECT_LT(model.Loss(measured), 0.7 * model.Loss(predicted));
  EXPECT_LE(model.evaluated(), 24 * 31);
  // Here the loss falls with what the other rises by.
  options.set_loss(ParetoSearchOptions::LOSS_DIFFERENCE);
  ASSERT_OK_AND_ASSIGN(const CachePlan opposite,
                       AllocateWith(model, problem, options));
  EXPECT_GT(model.Loss(opposite), 2 * model.Loss(measured));
}

TEST(ParetoSearchTest, LayersOfAGroupTakeTheSameFormats) {
  BudgetProblem problem({2, 4, 8}, 8);
  problem.SetRandomLosses(6);
  problem.budget_bytes = 16 * 350;
  ParetoSearchOptions options;
  options.set_max_groups(2);
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate(Search(options)));
  std::set<std::string> kinds;
  for (const LayerPlan& layer : plan.layer())
    kinds.insert(layer.SerializeAsString());
  EXPECT_EQ(kinds.size(), 2);
}

TEST(ParetoSearchTest, MeasuringNeedsAModel) {
  BudgetProblem problem({2, 4}, 2);
  problem.SetRandomLosses(1);
  problem.budget_bytes = 4 * 300;
  ParetoSearchOptions options;
  options.set_loss(ParetoSearchOptions::KL_DIVERGENCE);
  EXPECT_THAT(problem.Allocate(Search(options)).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("options.loss is KL_DIVERGENCE")));
}

TEST(ParetoSearchTest, OptionsThatMakeNoSenseAreRefused) {
  const auto status = [](const ParetoSearchOptions& options) {
    return Registry<BitAllocator>::Get()
        .Make(Search(options), "bit_allocator")
        .status();
  };
  ParetoSearchOptions options;
  options.set_population(30);
  EXPECT_THAT(status(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("a multiple of 4")));
  options.set_population(4);
  EXPECT_THAT(status(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("at least 8")));
  options.set_population(32);
  options.set_generations(-1);
  EXPECT_THAT(status(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("options.generations is")));
  options.set_generations(3);
  options.set_max_groups(-2);
  EXPECT_THAT(status(options), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("options.max_groups is")));
}

}  // namespace
}  // namespace kvmix
