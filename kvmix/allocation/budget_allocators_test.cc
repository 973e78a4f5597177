// What the allocators under a budget choose, on problems made up for it. That
// they keep to the budget is in conformance_test.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/allocation/budget_problem.h"
#include "kvmix/allocation/glpk_optimum.h"
#include "kvmix/allocation/knapsack.pb.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

// Bits of keys and values, layer after layer.
std::vector<int> BitsOf(const CachePlan& plan) {
  std::vector<int> bits;
  for (const LayerPlan& layer : plan.layer()) {
    bits.push_back(layer.key().bits());
    bits.push_back(layer.value().bits());
  }
  return bits;
}

TEST(KnapsackTest, IsAtLeastAsGoodAsTheOthersAndOftenBetter) {
  int better_than_greedy = 0;
  for (uint64_t stream = 0; stream < 50; ++stream) {
    BudgetProblem problem({2, 3, 4, 8, 16}, 12);
    problem.SetRandomLosses(stream);
    problem.budget_bytes = 24 * 250 + 37 * static_cast<int64_t>(stream);
    ASSERT_OK_AND_ASSIGN(const CachePlan best, problem.Allocate("knapsack"));
    const double least = problem.Loss(best);
    for (const char* name : {"greedy", "water_filling", "random"}) {
      ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate(name));
      EXPECT_LE(least, problem.Loss(plan) * (1 + 1e-12)) << name;
    }
    ASSERT_OK_AND_ASSIGN(const CachePlan greedy, problem.Allocate("greedy"));
    better_than_greedy += least < problem.Loss(greedy) * (1 - 1e-9);
  }
  EXPECT_GT(better_than_greedy, 0);
}

// All 3^8 plans of two layers with two KV heads, bytes and losses by the plan.
TEST(KnapsackTest, NoPlanOfTheSameKvHeadsIsBetter) {
  const std::vector<int> bits = {2, 3, 4};
  for (uint64_t stream = 0; stream < 5; ++stream) {
    BudgetProblem problem(bits, 2, 2);
    problem.SetRandomLosses(stream);
    problem.budget_bytes = 8 * 250 + 90 * static_cast<int64_t>(stream);
    double least = INFINITY;
    for (int code = 0; code < 6561; ++code) {
      CachePlan plan;
      int digits = code;
      for (int i = 0; i < 2; ++i) {
        LayerPlan& layer = *plan.add_layer();
        for (const Side side : {Side::kKey, Side::kValue}) {
          SetFormats({FormatOfBits(bits[digits % 3]),
                      FormatOfBits(bits[digits / 3 % 3])},
                     side, layer);
          digits /= 9;
        }
      }
      if (CheckBudget(plan, problem.budget_bytes, problem.costs).ok())
        least = std::min(least, problem.Loss(plan));
    }
    ASSERT_OK_AND_ASSIGN(const CachePlan best, problem.Allocate("knapsack"));
    EXPECT_DOUBLE_EQ(problem.Loss(best), least);
  }
}

// Larger ones, whose plans are too many to try: 6 layers with 3 KV heads, every
// item of the problem written down from the profile.
TEST(KnapsackTest, IsGlpksOptimumForKvHeadsOn50Instances) {
  const std::vector<int> bits = {1, 2, 3, 4, 8};
  for (uint64_t stream = 0; stream < 50; ++stream) {
    SCOPED_TRACE(stream);
    BudgetProblem problem(bits, 6, 3);
    problem.SetRandomLosses(stream);
    problem.budget_bytes = 36 * 150 + 311 * static_cast<int64_t>(stream);
    ChoiceTable items;
    for (const LayerImportance& layer : problem.profile.layer()) {
      for (const auto* losses :
           {&layer.key_head_loss(), &layer.value_head_loss()}) {
        for (int i = 0; i < losses->size(); ++i) {
          if (i % 5 == 0) items.emplace_back();
          items.back().push_back({100 * bits[i % 5], losses->Get(i)});
        }
      }
    }
    ASSERT_EQ(items.size(), 36u);
    ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate("knapsack"));
    EXPECT_OK(CheckBudget(plan, problem.budget_bytes, problem.costs));
    EXPECT_NEAR(problem.Loss(plan), GlpkOptimum(items, problem.budget_bytes),
                kGlpkTolerance);
  }
}

TEST(KnapsackTest, SpendsWhatItIsGivenWhereItCounts) {
  BudgetProblem problem({2, 4}, 2);
  problem.SetLosses(0, {0.9, 0.1}, {0.5, 0.2});
  problem.SetLosses(1, {0.3, 0.2}, {0.8, 0.1});
  problem.budget_bytes = 200 * 4 + 200 * 2;  // two of four at 4 bits
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate("knapsack"));
  EXPECT_EQ(BitsOf(plan), (std::vector<int>{4, 2, 2, 4}));
}

// An independent loop: all single steps, tried one by one, best rate first.
TEST(GreedyTest, TakesTheBestStepOfAllEveryTime) {
  BudgetProblem problem({2, 3, 4, 8}, 6);
  problem.SetRandomLosses(9);
  problem.budget_bytes = 12 * 330;
  const std::vector<int> bits = {2, 3, 4, 8};
  std::vector<int> at(12, 0);
  const auto loss = [&](int item, int c) {
    const LayerImportance& layer = problem.profile.layer(item / 2);
    return item % 2 == 0 ? layer.key_loss(c) : layer.value_loss(c);
  };
  int64_t left = problem.budget_bytes - 12 * 200;
  while (true) {
    std::map<double, std::pair<int, int>> steps;
    for (int item = 0; item < 12; ++item) {
      for (int c = at[item] + 1; c < 4; ++c) {
        const int64_t bytes = 100 * (bits[c] - bits[at[item]]);
        if (bytes <= left)
          steps[(loss(item, at[item]) - loss(item, c)) / bytes] = {item, c};
      }
    }
    if (steps.empty()) break;
    const auto [item, c] = steps.rbegin()->second;
    left -= 100 * (bits[c] - bits[at[item]]);
    at[item] = c;
  }
  std::vector<int> expected;
  for (int c : at) expected.push_back(bits[c]);
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate("greedy"));
  EXPECT_EQ(BitsOf(plan), expected);
}

TEST(GreedyTest, TakesAStepThatFitsToTheByte) {
  BudgetProblem problem({2, 4}, 2);
  problem.SetRandomLosses(2);
  problem.budget_bytes = 4 * 400;
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate("greedy"));
  EXPECT_EQ(BitsOf(plan), (std::vector<int>{4, 4, 4, 4}));
}

// With all bits from 1 to 8 on offer and losses a 4^-b, an item of 16 times the
// loss of another one gets two bits more.
TEST(WaterFillingTest, TwoBitsForEveryFactorOf16) {
  BudgetProblem problem({1, 2, 3, 4, 5, 6, 7, 8}, 2);
  const auto losses = [](double amplitude) {
    std::vector<double> at;
    for (int b = 1; b <= 8; ++b) at.push_back(amplitude * std::pow(4, -b));
    return at;
  };
  problem.SetLosses(0, losses(16), losses(1));
  problem.SetLosses(1, losses(1), losses(16));
  problem.budget_bytes = 400 * 4;
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, problem.Allocate("water_filling"));
  EXPECT_EQ(BitsOf(plan), (std::vector<int>{5, 3, 3, 5}));
}

TEST(RandomBitsTest, IsAFunctionOfTheSeedAndSpendsTheBudget) {
  BudgetProblem problem({2, 3, 4}, 16);
  problem.budget_bytes = 32 * 260;
  AllocationContext context = problem.Context();
  Component component;
  component.set_name("random");
  const auto allocator =
      *Registry<BitAllocator>::Get().Make(component, "bit_allocator");
  const auto bits = [&](uint64_t seed) {
    context.seed = seed;
    return BitsOf(*allocator->Allocate({}, context));
  };
  EXPECT_EQ(bits(1), bits(1));
  EXPECT_NE(bits(1), bits(2));
  int sum = 0;
  for (int b : bits(1)) sum += b;
  // A step takes 100 bytes: less than one is left.
  EXPECT_GT(100 * sum + 100, problem.budget_bytes);
}

TEST(LossesOfChoicesTest, ScoresThatOnlyRankAreRefusedUnlessTrusted) {
  BudgetProblem problem({16}, 2);
  problem.budget_bytes = 4 * 1600;
  problem.profile.clear_formats();
  problem.profile.set_unit(ImportanceProfile::RANK_ONLY);
  EXPECT_THAT(problem.Allocate("knapsack").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("the scores of \"made_up\" only rank")));
  Component component;
  component.set_name("knapsack");
  KnapsackOptions options;
  options.set_trust_scores(true);
  component.mutable_options()->PackFrom(options);
  EXPECT_OK(problem.Allocate(component));
}

TEST(LossesOfChoicesTest, AFormatThatTheProfileDoesNotKnowIsRefused) {
  BudgetProblem problem({2, 4, 16}, 1);
  problem.SetLosses(0, {1, 0.1, 0}, {1, 0.1, 0});
  problem.budget_bytes = 2 * 1600;
  // Full precision need not be in the table.
  problem.profile.mutable_formats()->mutable_key()->RemoveLast();
  EXPECT_OK(problem.Allocate("knapsack"));
  problem.profile.mutable_formats()->mutable_key()->RemoveLast();
  EXPECT_THAT(problem.Allocate("knapsack").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("no losses of a format of 4 bits for keys")));
}

TEST(LossesOfChoicesTest, LossesOfLayersAreNoneOfTheirKvHeads) {
  BudgetProblem problem({2, 4}, 2, /*num_kv_heads=*/2);
  problem.SetLosses(0, {1, 0.1}, {1, 0.1});
  problem.SetLosses(1, {1, 0.1}, {1, 0.1});
  problem.budget_bytes = 8 * 400;
  EXPECT_THAT(problem.Allocate("greedy").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("make the profile with granularity: HEAD")));
}

TEST(LossesOfChoicesTest, LossesThatAreNoneAreRefused) {
  BudgetProblem problem({2, 4}, 2);
  problem.SetLosses(0, {1, 0.1}, {1, 0.1});
  problem.SetLosses(1, {1, 0.1}, {1, NAN});
  problem.budget_bytes = 4 * 400;
  EXPECT_THAT(problem.Allocate("greedy").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("loss of layer 1 values is nan")));
  problem.SetLosses(1, {1}, {1});
  EXPECT_THAT(problem.Allocate("greedy").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer 1 has 1 losses of keys")));
}

}  // namespace
}  // namespace kvmix
