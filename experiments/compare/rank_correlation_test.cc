#include "experiments/compare/rank_correlation.h"

#include <vector>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

// From scipy.stats.spearmanr and kendalltau.
TEST(RankCorrelationTest, MatchesScipy) {
  const std::vector<double> a = {3.1, 0.2, 5.0, 1.7, 2.2, 9.0, 0.1, 4.4};
  const std::vector<double> b = {2.0, 1.0, 4.0, 3.0, 0.5, 8.0, 0.7, 9.0};
  EXPECT_NEAR(Spearman(a, b), 0.7380952380952381, 1e-14);
  EXPECT_NEAR(Kendall(a, b), 0.5714285714285714, 1e-14);
  const std::vector<double> ties = {1, 2, 2, 3, 3, 3, 0, 1};
  EXPECT_NEAR(Spearman(a, ties), 0.2964997266644405, 1e-14);
  EXPECT_NEAR(Kendall(a, ties), 0.2758386421836852, 1e-14);
}

TEST(RankCorrelationTest, OnlyTheOrderCounts) {
  const std::vector<double> a = {1, 2, 3, 4}, steep = {1, 10, 100, 1000};
  const std::vector<double> down = {4, 3, 2, 1};
  EXPECT_DOUBLE_EQ(Spearman(a, steep), 1);
  EXPECT_DOUBLE_EQ(Kendall(a, steep), 1);
  EXPECT_DOUBLE_EQ(Spearman(a, down), -1);
  EXPECT_DOUBLE_EQ(Kendall(a, down), -1);
}

TEST(RankCorrelationTest, WhatRanksNothingIsLikeNothing) {
  EXPECT_EQ(Spearman({1, 1, 1}, {1, 2, 3}), 0);
  EXPECT_EQ(Kendall({1, 2, 3}, {5, 5, 5}), 0);
}

}  // namespace
}  // namespace kvmix
