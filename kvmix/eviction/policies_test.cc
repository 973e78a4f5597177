// What each policy keeps, against plain loops that know nothing of it.

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/eviction/ada.pb.h"
#include "kvmix/eviction/demote.pb.h"
#include "kvmix/eviction/eviction_budget.pb.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/eviction/eviction_test_state.h"
#include "kvmix/eviction/expected_attention.pb.h"
#include "kvmix/eviction/pyramid.pb.h"
#include "kvmix/eviction/random.pb.h"
#include "kvmix/eviction/snapkv.pb.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::RandomLayer;
using testing::StatusIs;

template <typename Options>
Component Named(const std::string& name, const Options& options) {
  Component component;
  component.set_name(name);
  component.mutable_options()->PackFrom(options);
  return component;
}

std::unique_ptr<EvictionPolicy> Make(const Component& component) {
  auto policy =
      Registry<EvictionPolicy>::Get().Make(component, "eviction_policy");
  EXPECT_OK(policy);
  return *std::move(policy);
}

EvictionBudget Budget(int64_t tokens, int64_t first, int64_t recent) {
  EvictionBudget budget;
  budget.set_tokens(tokens);
  budget.set_first_tokens(first);
  budget.set_recent_tokens(recent);
  budget.set_step(1);
  return budget;
}

// A score of token t of a head, higher ones stay.
using ScoreLoop =
    std::function<double(const EvictionHead& head, int dim, int64_t t)>;

// The tokens that leave if `keep` stay, the first and the newest ones among
// them.
std::set<int64_t> LoopDrops(const EvictionState& state, int h, int64_t keep,
                            int64_t first, int64_t recent,
                            const ScoreLoop& score) {
  const EvictionHead& head = state.heads[h];
  std::set<int64_t> stay;
  for (int64_t t = 0; t < head.num_tokens; ++t)
    if (head.positions[t] < first ||
        head.positions[t] >= state.tokens_seen - recent)
      stay.insert(t);
  while (static_cast<int64_t>(stay.size()) < keep) {
    int64_t best = -1;
    for (int64_t t = 0; t < head.num_tokens; ++t)
      if (stay.count(t) == 0 &&
          (best < 0 ||
           score(head, state.head_dim, t) > score(head, state.head_dim, best)))
        best = t;
    stay.insert(best);
  }
  std::set<int64_t> drops;
  for (int64_t t = 0; t < head.num_tokens; ++t)
    if (stay.count(t) == 0) drops.insert(t);
  return drops;
}

// Softmax weight of row r.
double Weight(const EvictionHead& h, int64_t r, int64_t t) {
  double sum = 0;
  for (int64_t i = 0; i < h.num_tokens; ++i)
    sum += std::exp(static_cast<double>(h.scores[r * h.num_tokens + i]));
  return std::exp(static_cast<double>(h.scores[r * h.num_tokens + t])) / sum;
}
double MeanWeight(const EvictionHead& h, int64_t t) {
  double sum = 0;
  for (int64_t r = 0; r < h.score_rows; ++r) sum += Weight(h, r, t);
  return sum;
}
double Norm(const float* x, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += static_cast<double>(x[d]) * x[d];
  return std::sqrt(sum);
}
double Product(const float* a, const float* b, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += static_cast<double>(a[d]) * b[d];
  return sum;
}
double H2oScore(const EvictionHead& h, int, int64_t t) { return h.received[t]; }
double PooledWeight(const EvictionHead& h, int, int64_t t) {
  double sum = 0;
  for (int64_t i = t - 2; i <= t + 2; ++i)
    if (i >= 0 && i < h.num_tokens) sum += MeanWeight(h, i);
  return sum;
}
double KeyNormScore(const EvictionHead& h, int dim, int64_t t) {
  return -Norm(h.keys + t * dim, dim);
}
double KeyDiffScore(const EvictionHead& h, int dim, int64_t t) {
  double sum = 0;
  for (int64_t i = 0; i < h.num_tokens; ++i)
    sum += Product(h.keys + i * dim, h.keys + t * dim, dim) /
           Norm(h.keys + i * dim, dim);
  return -sum / Norm(h.keys + t * dim, dim);
}
double ExpectedScore(const EvictionHead& h, int dim, int64_t t) {
  double score = 0;
  for (int j = 0; j < h.query_heads; ++j) {
    double sum = 0, own = 0;
    for (int64_t i = 0; i < h.num_tokens; ++i) {
      double mean = 0, count = 0, variance = 0;
      for (int64_t r = j; r < h.score_rows; r += h.query_heads)
        if (h.scores[r * h.num_tokens + i] > -1e30)
          mean += h.scores[r * h.num_tokens + i], ++count;
      mean /= count;
      for (int64_t r = j; r < h.score_rows; r += h.query_heads)
        if (h.scores[r * h.num_tokens + i] > -1e30)
          variance +=
              std::pow(h.scores[r * h.num_tokens + i] - mean, 2) / count;
      const double weight = std::exp(mean + variance / 2);
      sum += weight;
      if (i == t) own = weight;
    }
    score += own / sum;
  }
  return score * Norm(h.values + t * dim, dim);
}

struct Law {
  std::string name;
  Component component;
  ScoreLoop score;
};

std::vector<Law> Laws() {
  const EvictionBudget budget = Budget(40, 3, 10);
  ScoredEvictionOptions plain;
  *plain.mutable_budget() = budget;
  SnapKvOptions snap;
  *snap.mutable_budget() = budget;
  ExpectedAttentionOptions expected;
  *expected.mutable_budget() = budget;
  return {
      {"h2o", Named("h2o", plain), H2oScore},
      {"tova", Named("tova", plain),
       [](const EvictionHead& h, int, int64_t t) { return MeanWeight(h, t); }},
      {"snapkv", Named("snapkv", snap), PooledWeight},
      {"key_norm", Named("key_norm", plain), KeyNormScore},
      {"key_diff", Named("key_diff", plain), KeyDiffScore},
      {"expected_attention", Named("expected_attention", expected),
       ExpectedScore},
      {"sink_window", Named("sink_window", plain),
       [](const EvictionHead& h, int, int64_t t) {
         return static_cast<double>(h.positions[t]);
       }}};
}

TEST(ScoredEvictionTest, KeepsWhatALoopKeeps) {
  for (const Law& law : Laws()) {
    const auto policy = Make(law.component);
    for (uint64_t seed = 0; seed < 2; ++seed) {
      const RandomLayer layer({.num_tokens = 70, .tokens_seen = 100}, seed);
      const auto dropped = policy->TokensToDrop(layer.state());
      for (int h = 0; h < 2; ++h) {
        const std::set<int64_t> expected =
            LoopDrops(layer.state(), h, 40, 3, 10, law.score);
        EXPECT_EQ(std::set<int64_t>(dropped[h].begin(), dropped[h].end()),
                  expected)
            << law.name;
      }
    }
  }
}

TEST(H2oTest, HalfOfTheBudgetIsForTheNewest) {
  ScoredEvictionOptions options;
  options.mutable_budget()->set_fraction(0.4);
  options.mutable_budget()->set_step(1);
  const auto policy = Make(Named("h2o", options));
  const RandomLayer layer({.num_tokens = 100, .tokens_seen = 150}, 1);
  const auto dropped = policy->TokensToDrop(layer.state());
  for (int h = 0; h < 2; ++h)
    EXPECT_EQ(std::set<int64_t>(dropped[h].begin(), dropped[h].end()),
              LoopDrops(layer.state(), h, 60, 0, 30, H2oScore));
}

TEST(RandomEvictionTest, ATokenKeepsItsRank) {
  RandomEvictionOptions options;
  *options.mutable_budget() = Budget(50, 0, 0);
  const auto half = Make(Named("random", options));
  *options.mutable_budget() = Budget(20, 0, 0);
  const auto fifth = Make(Named("random", options));
  const RandomLayer layer({.num_tokens = 100, .tokens_seen = 100}, 1);
  const auto few = half->TokensToDrop(layer.state());
  const auto many = fifth->TokensToDrop(layer.state());
  EXPECT_TRUE(std::includes(many[0].begin(), many[0].end(), few[0].begin(),
                            few[0].end()));
  EXPECT_NE(few[0], few[1]);  // heads differ
}

// The rank is that of its position, wherever others have left.
TEST(RandomEvictionTest, TheSameTokensLeaveOfWhatIsLeft) {
  RandomEvictionOptions options;
  *options.mutable_budget() = Budget(20, 0, 0);
  const auto policy = Make(Named("random", options));
  const auto positions = [&](int64_t num_tokens) {
    const RandomLayer layer({.num_tokens = num_tokens, .tokens_seen = 100}, 1);
    std::set<int64_t> stay;
    const EvictionHead& head = layer.state().heads[0];
    const auto dropped = policy->TokensToDrop(layer.state())[0];
    for (int64_t t = 0; t < num_tokens; ++t) {
      if (!std::binary_search(dropped.begin(), dropped.end(), t))
        stay.insert(head.positions[t]);
    }
    return stay;
  };
  // Of all 100 the 20 best, and of the first 30 and the last 30.
  const std::set<int64_t> of_all = positions(100), of_some = positions(60);
  EXPECT_EQ(of_some.size(), 20);
  for (int64_t p : of_all) {
    if (p < 30 || p >= 70) {
      EXPECT_EQ(of_some.count(p), 1) << p;
    }
  }
}

TEST(BudgetTest, TokensLeaveWhenAStepIsTooMany) {
  ScoredEvictionOptions options;
  *options.mutable_budget() = Budget(40, 3, 10);
  options.mutable_budget()->set_step(16);
  const auto policy = Make(Named("sink_window", options));
  const RandomLayer below({.num_tokens = 55, .tokens_seen = 100}, 1);
  EXPECT_FALSE(policy->WouldDrop(below.state()));
  EXPECT_TRUE(policy->TokensToDrop(below.state())[0].empty());
  const RandomLayer above({.num_tokens = 56, .tokens_seen = 100}, 1);
  EXPECT_TRUE(policy->WouldDrop(above.state()));
  EXPECT_EQ(policy->TokensToDrop(above.state())[0].size(), 16u);
}

TEST(BudgetTest, ContradictionsAreRefused) {
  ScoredEvictionOptions options;
  *options.mutable_budget() = Budget(40, 3, 10);
  options.mutable_budget()->set_fraction(0.5);
  const auto status = [&] {
    return Registry<EvictionPolicy>::Get()
        .Make(Named("h2o", options), "eviction_policy")
        .status();
  };
  EXPECT_THAT(status(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("both tokens and fraction")));
  options.mutable_budget()->set_tokens(0);
  options.mutable_budget()->set_recent_share(0.5);
  EXPECT_THAT(status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("both recent_tokens and recent_share")));
  options.mutable_budget()->clear_recent_tokens();
  options.mutable_budget()->set_fraction(1.5);
  EXPECT_THAT(status(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("options.budget.fraction is 1.5")));
}

// Budgets of the authors' formula, whose mean is the even one.
TEST(PyramidTest, BudgetsFallLinearlyOverTheLayers) {
  PyramidOptions options;
  options.set_steepness(20);
  SnapKvOptions inner;
  *inner.mutable_budget() = Budget(110, 0, 10);
  *options.mutable_inner() = Named("snapkv", inner);
  const auto policy = Make(Named("pyramid", options));
  // min = 100 / 20 = 5, max = 195
  const std::vector<int64_t> expected = {10 + 195, 10 + 131, 10 + 68, 10 + 5};
  for (int layer = 0; layer < 4; ++layer) {
    const RandomLayer shown(
        {.num_tokens = 400, .tokens_seen = 400, .layer = layer}, 1);
    EXPECT_EQ(400 - static_cast<int64_t>(
                        policy->TokensToDrop(shown.state())[0].size()),
              expected[layer]);
  }
}

// H2O's newest tokens, half of the budget, stay in every layer.
TEST(PyramidTest, TokensThatStayInAnyCaseAreNotShared) {
  ScoredEvictionOptions inner;
  inner.mutable_budget()->set_tokens(200);
  inner.mutable_budget()->set_step(1);
  PyramidOptions options;
  *options.mutable_inner() = Named("h2o", inner);
  const auto policy = Make(Named("pyramid", options));
  const std::vector<int64_t> expected = {100 + 195, 100 + 131, 100 + 68,
                                         100 + 5};
  for (int layer = 0; layer < 4; ++layer) {
    const RandomLayer shown(
        {.num_tokens = 400, .tokens_seen = 400, .layer = layer}, 1);
    EXPECT_EQ(400 - static_cast<int64_t>(
                        policy->TokensToDrop(shown.state())[0].size()),
              expected[layer]);
  }
}

// The middle one of three layers has the even budget.
TEST(PyramidTest, HeadsKeepWhatAdaGivesThem) {
  SnapKvOptions snap;
  *snap.mutable_budget() = Budget(40, 2, 6);
  AdaOptions shared;
  *shared.mutable_inner() = Named("snapkv", snap);
  const Component ada = Named("ada", shared);
  PyramidOptions options;
  options.set_steepness(2);
  *options.mutable_inner() = ada;
  const RandomLayer layer(
      {.num_tokens = 70, .tokens_seen = 90, .layer = 1, .num_layers = 3}, 1);
  const auto dropped =
      Make(Named("pyramid", options))->TokensToDrop(layer.state());
  EXPECT_NE(dropped[0].size(), dropped[1].size());
  EXPECT_EQ(dropped, Make(ada)->TokensToDrop(layer.state()));
}

TEST(AdaTest, HeadsCompeteForOneBudgetAboveAFloor) {
  AdaOptions options;
  options.set_floor(0.25);
  SnapKvOptions inner;
  *inner.mutable_budget() = Budget(40, 2, 6);
  inner.set_pool(1);
  *options.mutable_inner() = Named("snapkv", inner);
  const auto policy = Make(Named("ada", options));
  bool heads_differ = false;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const RandomLayer layer({.num_tokens = 70, .tokens_seen = 90}, seed);
    const EvictionState& state = layer.state();
    // Stay: first and newest, then the best of a head up to 10, then the best
    // of all up to 2 * 40.
    std::vector<std::set<int64_t>> stay(2);
    std::vector<std::vector<double>> weight(2);
    for (int h = 0; h < 2; ++h) {
      for (int64_t t = 0; t < 70; ++t) {
        weight[h].push_back(MeanWeight(state.heads[h], t));
        const int64_t position = state.heads[h].positions[t];
        if (position < 2 || position >= 84) stay[h].insert(t);
      }
    }
    const auto best = [&](int h) {
      int64_t found = -1;
      for (int64_t t = 0; t < 70; ++t)
        if (stay[h].count(t) == 0 &&
            (found < 0 || weight[h][t] > weight[h][found]))
          found = t;
      return found;
    };
    for (int h = 0; h < 2; ++h)
      while (stay[h].size() < 10) stay[h].insert(best(h));
    while (stay[0].size() + stay[1].size() < 80) {
      const int h = weight[0][best(0)] > weight[1][best(1)] ? 0 : 1;
      stay[h].insert(best(h));
    }
    heads_differ |= stay[0].size() != stay[1].size();
    const auto dropped = policy->TokensToDrop(state);
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(dropped[h].size() + stay[h].size(), 70u);
      for (const int64_t t : dropped[h]) EXPECT_EQ(stay[h].count(t), 0u);
    }
  }
  EXPECT_TRUE(heads_differ);
}

TEST(DemoteTest, BudgetsAreOfTokensThatAreNotDemoted) {
  DemoteOptions options;
  options.set_key_bits(4);
  ScoredEvictionOptions inner;
  *inner.mutable_budget() = Budget(20, 0, 4);
  *options.mutable_inner() = Named("h2o", inner);
  const auto policy = Make(Named("demote", options));
  ASSERT_OK_AND_ASSIGN(const QuantFormat key,
                       policy->DemotionFormat(Side::kKey, 64));
  EXPECT_EQ(key.bits(), 4);
  ASSERT_OK_AND_ASSIGN(const QuantFormat value,
                       policy->DemotionFormat(Side::kValue, 64));
  EXPECT_EQ(value.bits(), 2);
  const RandomLayer layer(
      {.num_tokens = 100, .tokens_seen = 100, .demoted = 32, .multiple = 16},
      1);
  // 68 are not demoted, 48 too many: three sixteens.
  EXPECT_EQ(policy->TokensToDrop(layer.state())[0].size(), 48u);
}

TEST(WrappedEvictionTest, AroundDemoteDemotesToo) {
  DemoteOptions inner;
  inner.set_key_bits(4);
  AdaOptions options;
  *options.mutable_inner() = Named("demote", inner);
  ASSERT_OK_AND_ASSIGN(
      const QuantFormat key,
      Make(Named("ada", options))->DemotionFormat(Side::kKey, 64));
  EXPECT_EQ(key.bits(), 4);
}

TEST(WrappedEvictionTest, APolicyThatDoesNotScoreIsRefused) {
  AdaOptions options;
  options.mutable_inner()->set_name("keep_all");
  EXPECT_THAT(Registry<EvictionPolicy>::Get()
                  .Make(Named("ada", options), "eviction_policy")
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("a policy that scores tokens")));
}

}  // namespace
}  // namespace kvmix
