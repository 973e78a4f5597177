// The exact solver against GLPK's branch and bound and against all choices.
#include "kvmix/allocation/knapsack_solver.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/allocation/glpk_optimum.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

struct Instance {
  ChoiceTable table;
  int64_t budget = 0;
};

// Up to 40 items of up to 6 choices. Every other instance has bytes like those
// of formats, few and the same for all items, where many sums are equal; the
// others any bytes. Some losses are 0, some equal, some rise with the bytes.
Instance RandomInstance(uint64_t stream, int max_items) {
  CounterRandom random(/*seed=*/3, stream);
  const bool few_sizes = stream % 2 == 0;
  const int num_items = 1 + static_cast<int>(random.Below(max_items));
  const int num_choices = 1 + static_cast<int>(random.Below(6));
  std::vector<int64_t> sizes;
  for (int c = 0; c < num_choices; ++c)
    sizes.push_back(64 + 32 * static_cast<int64_t>(random.Below(32)));
  Instance instance;
  int64_t least = 0, most = 0;
  for (int i = 0; i < num_items; ++i) {
    std::vector<Choice>& item = instance.table.emplace_back();
    const double amplitude = std::pow(10, -4 * random.Uniform());
    int64_t low = INT64_MAX, high = 0;
    for (int c = 0; c < num_choices; ++c) {
      const int64_t bytes =
          few_sizes ? sizes[c] : 1 + static_cast<int64_t>(random.Below(100000));
      const double falling =
          few_sizes ? std::exp(-bytes / 200.0) : std::exp(-bytes / 20000.0);
      const double loss = random.Below(8) == 0
                              ? amplitude * static_cast<double>(random.Below(2))
                              : amplitude * falling * (0.5 + random.Uniform());
      item.push_back({.bytes = bytes, .loss = loss});
      low = std::min(low, bytes);
      high = std::max(high, bytes);
    }
    least += low;
    most += high;
  }
  instance.budget =
      least + static_cast<int64_t>(random.Uniform() * 1.1 *
                                   static_cast<double>(most - least));
  return instance;
}

TEST(KnapsackSolverTest, IsGlpksOptimumOn200Instances) {
  for (uint64_t stream = 0; stream < 200; ++stream) {
    SCOPED_TRACE(stream);
    const Instance instance = RandomInstance(stream, /*max_items=*/40);
    const std::vector<int> chosen =
        SolveKnapsack(instance.table, instance.budget);
    ASSERT_EQ(chosen.size(), instance.table.size());
    EXPECT_LE(BytesOf(instance.table, chosen), instance.budget);
    const double optimum = GlpkOptimum(instance.table, instance.budget);
    EXPECT_NEAR(LossOf(instance.table, chosen), optimum, kGlpkTolerance);
  }
}

// Against all choices there is no tolerance but that of sums.
TEST(KnapsackSolverTest, NoOtherChoiceIsBetter) {
  for (uint64_t stream = 1000; stream < 1200; ++stream) {
    SCOPED_TRACE(stream);
    const Instance instance = RandomInstance(stream, /*max_items=*/6);
    std::vector<int> at(instance.table.size(), 0);
    double best = INFINITY;
    while (true) {
      if (BytesOf(instance.table, at) <= instance.budget)
        best = std::min(best, LossOf(instance.table, at));
      size_t i = 0;
      while (i < at.size() &&
             ++at[i] == static_cast<int>(instance.table[i].size()))
        at[i++] = 0;
      if (i == at.size()) break;
    }
    EXPECT_DOUBLE_EQ(
        LossOf(instance.table, SolveKnapsack(instance.table, instance.budget)),
        best);
  }
}

TEST(KnapsackSolverTest, OneByteDecides) {
  const ChoiceTable table = {{{10, 4}, {15, 1}}, {{10, 3}, {16, 1}}};
  EXPECT_EQ(SolveKnapsack(table, 20), (std::vector<int>{0, 0}));
  EXPECT_EQ(SolveKnapsack(table, 25), (std::vector<int>{1, 0}));
  EXPECT_EQ(SolveKnapsack(table, 30), (std::vector<int>{1, 0}));
  EXPECT_EQ(SolveKnapsack(table, 31), (std::vector<int>{1, 1}));
}

TEST(KnapsackSolverTest, OfEqualLossesTheFewestBytes) {
  EXPECT_EQ(SolveKnapsack({{{30, 1}, {20, 1}, {25, 1}}}, 100),
            (std::vector<int>{1}));
}

}  // namespace
}  // namespace kvmix
