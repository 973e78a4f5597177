#include "kvmix/allocation/water_level.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

struct Problem {
  std::vector<DistortionCurve> curves;
  std::vector<BitRange> ranges;
};

Problem RandomProblem(uint64_t stream) {
  CounterRandom random(/*seed=*/1, stream);
  Problem problem;
  for (int i = 0; i < 24; ++i) {
    problem.curves.push_back({.amplitude = std::pow(10, -5 * random.Uniform()),
                              .decay = 0.5 + 1.5 * random.Uniform()});
    problem.ranges.push_back(
        {.low = 1 + random.Uniform(), .high = 4 + 12 * random.Uniform()});
  }
  return problem;
}

double TotalLoss(const std::vector<DistortionCurve>& curves,
                 const std::vector<double>& bits) {
  double sum = 0;
  for (size_t i = 0; i < curves.size(); ++i) sum += curves[i].Loss(bits[i]);
  return sum;
}

TEST(WaterLevelTest, MarginalLossesAreEqual) {
  for (uint64_t stream = 0; stream < 50; ++stream) {
    const auto [curves, ranges] = RandomProblem(stream);
    const double sum = 24 * (2.5 + 0.05 * static_cast<double>(stream));
    const std::vector<double> bits = FillWater(curves, ranges, sum);
    EXPECT_NEAR(std::accumulate(bits.begin(), bits.end(), 0.0), sum, 1e-9);
    EXPECT_LE(std::accumulate(bits.begin(), bits.end(), 0.0), sum);
    double level = 0;
    for (size_t i = 0; i < bits.size(); ++i) {
      if (bits[i] > ranges[i].low && bits[i] < ranges[i].high)
        level = curves[i].Slope(bits[i]);
    }
    ASSERT_GT(level, 0);
    for (size_t i = 0; i < bits.size(); ++i) {
      const double slope = curves[i].Slope(bits[i]);
      if (bits[i] == ranges[i].low) {
        EXPECT_LE(slope, level * (1 + 1e-9));
      } else if (bits[i] == ranges[i].high) {
        EXPECT_GE(slope, level * (1 - 1e-9));
      } else {
        EXPECT_NEAR(slope / level, 1, 1e-9);
      }
    }
  }
}

// Without the conditions above: no exchange of bits between two items helps.
TEST(WaterLevelTest, NoExchangeIsBetter) {
  const auto [curves, ranges] = RandomProblem(77);
  const std::vector<double> bits = FillWater(curves, ranges, 24 * 3.3);
  const double best = TotalLoss(curves, bits);
  for (size_t a = 0; a < bits.size(); ++a) {
    for (size_t b = 0; b < bits.size(); ++b) {
      for (const double step : {0.01, 0.3}) {
        std::vector<double> other = bits;
        other[a] += step;
        other[b] -= step;
        if (other[a] > ranges[a].high || other[b] < ranges[b].low) continue;
        EXPECT_GE(TotalLoss(curves, other), best * (1 - 1e-12));
      }
    }
  }
}

TEST(WaterLevelTest, ItemsWithoutLossGetTheLeast) {
  const std::vector<double> bits =
      FillWater({{.amplitude = 0}, {.amplitude = 1}},
                {{.low = 2, .high = 8}, {.low = 2, .high = 8}}, 9);
  EXPECT_EQ(bits[0], 2);
  EXPECT_NEAR(bits[1], 7, 1e-9);
}

TEST(WaterLevelTest, MoreThanAllCanTakeFillsAll) {
  EXPECT_EQ(FillWater({{.amplitude = 1}}, {{.low = 2, .high = 8}}, 9),
            (std::vector<double>{8}));
}

TEST(FitCurvesTest, FindsTheCurvesThatMadeThePoints) {
  const DistortionCurve a = {.amplitude = 3, .decay = 1.2};
  const DistortionCurve b = {.amplitude = 0.01, .decay = 1.2};
  const std::vector<DistortionCurve> fitted =
      FitCurves({{{2, a.Loss(2)}, {3, a.Loss(3)}, {16, 0}},
                 {{3, b.Loss(3)}, {5, b.Loss(5)}, {9, b.Loss(9)}},
                 {{2, 0}, {3, 0}}});
  EXPECT_NEAR(fitted[0].amplitude, 3, 1e-12);
  EXPECT_NEAR(fitted[1].amplitude, 0.01, 1e-14);
  EXPECT_EQ(fitted[2].amplitude, 0);
  for (const DistortionCurve& curve : fitted)
    EXPECT_NEAR(curve.decay, 1.2, 1e-12);
}

TEST(FitCurvesTest, WithoutAFallingLossABitQuartersIt) {
  EXPECT_DOUBLE_EQ(FitCurves({{{2, 1}}})[0].decay, std::log(4));
  EXPECT_DOUBLE_EQ(FitCurves({{{2, 1}, {3, 2}}})[0].decay, std::log(4));
  EXPECT_DOUBLE_EQ(FitCurves({{{2, 1}}})[0].amplitude, 16);
}

}  // namespace
}  // namespace kvmix
