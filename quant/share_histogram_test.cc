#include "quant/share_histogram.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

using Weighted = std::vector<std::pair<double, double>>;  // ascending shares

// Of all ways to cut x into `count` runs, the least squared error around the
// runs' means: every subset of cuts is tried.
double BruteForce(const Weighted& x, int count) {
  const int n = static_cast<int>(x.size());
  double best = std::numeric_limits<double>::infinity();
  for (int cuts = 0; cuts < 1 << (n - 1); ++cuts) {
    if (__builtin_popcount(cuts) != count - 1) continue;
    double error = 0;
    for (int begin = 0, end = 1; end <= n; ++end) {
      if (end < n && !(cuts >> (end - 1) & 1)) continue;
      double weight = 0, mean = 0;
      for (int i = begin; i < end; ++i) {
        weight += x[i].second;
        mean += x[i].second * x[i].first;
      }
      mean /= weight;
      for (int i = begin; i < end; ++i)
        error += x[i].second * std::pow(x[i].first - mean, 2);
      begin = end;
    }
    best = std::min(best, error);
  }
  return best;
}

TEST(ShareHistogramTest, LevelsAreTheBestOfAllCuts) {
  CounterRandom random(3, 0);
  for (int instance = 0; instance < 60; ++instance) {
    const int n = 4 + static_cast<int>(random.Below(9));
    Weighted x;
    double total = 0;
    ShareHistogram histogram(4096);
    for (int i = 0; i < n; ++i) {
      // In bins of their own.
      x.push_back({(i + 0.8 * random.Uniform()) / n,
                   0.1 + std::exp(2 * random.Normal())});
      histogram.Add(x.back().first, x.back().second);
      total += x.back().second;
    }
    for (int count = 1; count <= 4; ++count) {
      ASSERT_OK_AND_ASSIGN(const std::vector<float> levels,
                           histogram.OptimalLevels(count));
      ASSERT_EQ(levels.size(), count);
      EXPECT_NEAR(histogram.Error(levels) * total, BruteForce(x, count),
                  1e-6 * total)
          << "instance " << instance << ", " << count << " levels";
      for (int i = 1; i < count; ++i) EXPECT_LT(levels[i - 1], levels[i]);
    }
  }
}

TEST(ShareHistogramTest, EveryShareGetsItsLevelWhereThereAreEnough) {
  ShareHistogram histogram(64);
  for (double share : {0.0, 0.25, 0.5, 1.0}) histogram.Add(share, 2);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> levels,
                       histogram.OptimalLevels(4));
  EXPECT_THAT(levels, ::testing::ElementsAre(0, 0.25, 0.5, 1));
}

TEST(ShareHistogramTest, LevelsGoWhereTheWeightIs) {
  ShareHistogram light, heavy;
  for (int i = 0; i <= 1000; ++i) {
    light.Add(i / 1000.0, 1);
    heavy.Add(i / 1000.0, i < 200 ? 1000 : 1);
  }
  ASSERT_OK_AND_ASSIGN(const auto even, light.OptimalLevels(4));
  ASSERT_OK_AND_ASSIGN(const auto low, heavy.OptimalLevels(4));
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(even[i], (i + 0.5) / 4, 2e-3);
  EXPECT_LT(low[2], 0.2);
  EXPECT_GT(low[3], 0.4);
}

TEST(ShareHistogramTest, FewerSharesThanLevelsAreRefused) {
  ShareHistogram histogram;
  for (int i = 0; i < 7; ++i) histogram.Add(i / 7.0, 1);
  histogram.Add(0.99, 0);  // nothing
  EXPECT_THAT(histogram.OptimalLevels(8),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("8 levels need as many different shares, but "
                                 "7 were seen")));
}

}  // namespace
}  // namespace kvmix
