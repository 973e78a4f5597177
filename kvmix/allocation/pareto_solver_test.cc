#include "kvmix/allocation/pareto_solver.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

// A choice of gene g takes (2 + choice) * (g + 3) bytes. Losses are no sum:
// neighbours that differ cost more.
struct Landscape {
  explicit Landscape(int num_genes, uint64_t stream = 0) {
    CounterRandom random(/*seed=*/3, stream);
    for (int g = 0; g < num_genes; ++g)
      amplitude.push_back(std::pow(10, -2 * random.Uniform()));
    problem.num_choices.assign(num_genes, 4);
    problem.bytes = [](const Genes& genes) { return Bytes(genes); };
    problem.losses =
        [this](absl::Span<const Genes> all) -> absl::StatusOr<Losses> {
      Losses losses;
      for (const Genes& genes : all) {
        asked.push_back(genes);
        losses.push_back(Loss(genes));
      }
      return losses;
    };
    problem.start = {Genes(num_genes, 0)};
    problem.budget_bytes = Bytes(Genes(num_genes, 1));
  }
  using Losses = std::vector<double>;

  static int64_t Bytes(const Genes& genes) {
    int64_t sum = 0;
    for (size_t g = 0; g < genes.size(); ++g)
      sum += (2 + genes[g]) * (static_cast<int64_t>(g) + 3);
    return sum;
  }
  double Loss(const Genes& genes) const {
    double sum = 0;
    for (size_t g = 0; g < genes.size(); ++g) {
      sum += amplitude[g] * std::pow(4, -genes[g]);
      if (g > 0) sum += 0.003 * std::abs(genes[g] - genes[g - 1]);
    }
    return sum;
  }

  std::vector<double> amplitude;
  std::vector<Genes> asked;
  FrontProblem problem;
};

// All candidates of the landscape, one after the other.
template <typename See>
void ForAll(const Landscape& landscape, const See& see) {
  Genes genes(landscape.problem.num_choices.size(), 0);
  while (true) {
    see(genes);
    size_t g = 0;
    while (g < genes.size() && ++genes[g] == 4) genes[g++] = 0;
    if (g == genes.size()) return;
  }
}

constexpr FrontOptions kOptions = {
    .population = 60, .generations = 80, .seed = 5};

// 4860 candidates at most are seen, of 65536.
TEST(SearchFrontTest, ComesNearTheBestOfAllThatFit) {
  int exact = 0;
  for (uint64_t stream = 0; stream < 6; ++stream) {
    Landscape landscape(8, stream);
    double best = INFINITY;
    ForAll(landscape, [&](const Genes& genes) {
      if (Landscape::Bytes(genes) <= landscape.problem.budget_bytes)
        best = std::min(best, landscape.Loss(genes));
    });
    ASSERT_OK_AND_ASSIGN(const auto front,
                         SearchFront(landscape.problem, kOptions));
    EXPECT_LE(front.back().loss, 1.05 * best);
    exact += front.back().loss == best;
    EXPECT_LT(landscape.asked.size(), 4000);
  }
  EXPECT_GE(exact, 3);
}

// Random candidates are far above this budget; the search must leave them
// behind by their bytes alone.
TEST(SearchFrontTest, FindsItsWayFromCandidatesAboveTheBudget) {
  for (uint64_t stream = 0; stream < 4; ++stream) {
    Landscape landscape(8, stream);
    landscape.problem.budget_bytes = Landscape::Bytes(Genes(8, 0)) + 12;
    double best = INFINITY;
    ForAll(landscape, [&](const Genes& genes) {
      if (Landscape::Bytes(genes) <= landscape.problem.budget_bytes)
        best = std::min(best, landscape.Loss(genes));
    });
    ASSERT_OK_AND_ASSIGN(const auto front,
                         SearchFront(landscape.problem, kOptions));
    EXPECT_EQ(front.back().loss, best);
  }
}

TEST(SearchFrontTest, NothingThatWasSeenBeatsTheFront) {
  Landscape landscape(8);
  ASSERT_OK_AND_ASSIGN(const auto front,
                       SearchFront(landscape.problem, kOptions));
  EXPECT_GT(front.size(), 10);
  EXPECT_EQ(front.front().genes, Genes(8, 0));  // the cheapest of all
  for (const FrontPoint& point : front) {
    EXPECT_EQ(point.bytes, Landscape::Bytes(point.genes));
    EXPECT_EQ(point.loss, landscape.Loss(point.genes));
    for (const Genes& other : landscape.asked) {
      const bool no_worse = Landscape::Bytes(other) <= point.bytes &&
                            landscape.Loss(other) <= point.loss;
      EXPECT_TRUE(!no_worse || (Landscape::Bytes(other) == point.bytes &&
                                landscape.Loss(other) == point.loss));
    }
  }
}

TEST(SearchFrontTest, AsksForEachCandidateOnceAndForNoneAboveTheBudget) {
  Landscape landscape(8);
  ASSERT_OK(SearchFront(landscape.problem, kOptions));
  EXPECT_EQ(
      std::set<Genes>(landscape.asked.begin(), landscape.asked.end()).size(),
      landscape.asked.size());
  for (const Genes& genes : landscape.asked)
    EXPECT_LE(Landscape::Bytes(genes), landscape.problem.budget_bytes);
}

TEST(SearchFrontTest, IsAFunctionOfTheSeed) {
  const auto asked = [](uint64_t seed) {
    Landscape landscape(8);
    FrontOptions options = kOptions;
    options.seed = seed;
    EXPECT_OK(SearchFront(landscape.problem, options));
    return landscape.asked;
  };
  EXPECT_EQ(asked(1), asked(1));
  EXPECT_NE(asked(1), asked(2));
}

TEST(SearchFrontTest, GenesWithoutAChoiceAreLeftAsTheyAre) {
  Landscape landscape(8);
  landscape.problem.num_choices = {1, 4, 1, 4, 4, 1, 4, 1};
  ASSERT_OK_AND_ASSIGN(const auto front,
                       SearchFront(landscape.problem, kOptions));
  for (const Genes& genes : landscape.asked) {
    for (int g : {0, 2, 5, 7}) EXPECT_EQ(genes[g], 0);
  }
  EXPECT_GT(front.size(), 3);
  landscape.problem.num_choices.assign(8, 1);
  ASSERT_OK_AND_ASSIGN(const auto only,
                       SearchFront(landscape.problem, kOptions));
  ASSERT_EQ(only.size(), 1);
  EXPECT_EQ(only[0].genes, Genes(8, 0));
}

TEST(SearchFrontTest, AnErrorEndsIt) {
  Landscape landscape(8);
  int calls = 0;
  landscape.problem.losses =
      [&](absl::Span<const Genes> all) -> absl::StatusOr<std::vector<double>> {
    if (++calls == 3) return absl::CancelledError("interrupted");
    return std::vector<double>(all.size(), 1.0);
  };
  EXPECT_THAT(SearchFront(landscape.problem, kOptions).status(),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("interrupted")));
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace kvmix
