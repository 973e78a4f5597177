#include "models/ops.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/instruction_sets.h"

namespace kvmix {
namespace {

std::vector<float> Wave(int size, double phase) {
  std::vector<float> x(size);
  for (int i = 0; i < size; ++i)
    x[i] = static_cast<float>(1.7 * std::sin(1.3 * i + phase));
  return x;
}

// Checks gradient against central differences of loss(x) = sum(weights * f(x)).
template <class F>
void ExpectGradient(const std::vector<float>& x,
                    const std::vector<float>& gradient, const F& loss,
                    double tolerance) {
  constexpr float kStep = 1e-2f;
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<float> up = x, down = x;
    up[i] += kStep;
    down[i] -= kStep;
    EXPECT_NEAR(gradient[i],
                (loss(up) - loss(down)) / (double{up[i]} - down[i]), tolerance)
        << i;
  }
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

TEST(RmsNormTest, HasUnitRootMeanSquareTimesWeight) {
  const auto x = Wave(37, 0), weight = Wave(37, 1);
  std::vector<float> y(37);
  RmsNorm(x.data(), weight.data(), 1e-5f, 37, y.data());
  const double rms = std::sqrt(Dot(x, x) / 37 + 1e-5);
  for (int i = 0; i < 37; ++i) EXPECT_NEAR(y[i], x[i] / rms * weight[i], 1e-6);
}

TEST(RmsNormTest, GradientMatchesFiniteDifferences) {
  const auto x = Wave(23, 0), weight = Wave(23, 1), dy = Wave(23, 2);
  std::vector<float> dx = dy;  // in place
  RmsNormGradient(x.data(), weight.data(), 1e-5f, dx.data(), 23, dx.data());
  ExpectGradient(
      x, dx,
      [&](const std::vector<float>& at) {
        std::vector<float> y(23);
        RmsNorm(at.data(), weight.data(), 1e-5f, 23, y.data());
        return Dot(y, dy);
      },
      1e-3);
}

TEST(SwiGluTest, MatchesItsFormula) {
  const auto gate = Wave(21, 0), up = Wave(21, 1);
  std::vector<float> y(21);
  SwiGlu(gate.data(), up.data(), 21, y.data());
  for (int i = 0; i < 21; ++i) {
    EXPECT_NEAR(y[i], gate[i] / (1 + std::exp(-double{gate[i]})) * up[i], 1e-6);
  }
}

TEST(SwiGluTest, GradientMatchesFiniteDifferences) {
  const auto gate = Wave(21, 0), up = Wave(21, 1), dy = Wave(21, 2);
  std::vector<float> dgate = gate, dup = up;  // in place
  SwiGluGradient(dgate.data(), dup.data(), dy.data(), 21, dgate.data(),
                 dup.data());
  const auto loss = [&](const std::vector<float>& g,
                        const std::vector<float>& u) {
    std::vector<float> y(21);
    SwiGlu(g.data(), u.data(), 21, y.data());
    return Dot(y, dy);
  };
  ExpectGradient(
      gate, dgate, [&](const auto& g) { return loss(g, up); }, 1e-3);
  ExpectGradient(
      up, dup, [&](const auto& u) { return loss(gate, u); }, 1e-3);
}

TEST(SoftmaxTest, MatchesItsFormulaAndSurvivesLargeScores) {
  for (const int size : {1, 7, 8, 1000}) {
    std::vector<float> x = Wave(size, 0);
    for (float& v : x) v = v * 100 + 5000;
    const std::vector<float> scores = x;
    Softmax(x.data(), size, 0.125f);
    double max = -1e30, sum = 0;
    for (const float s : scores) max = std::max(max, double{s});
    for (const float s : scores) sum += std::exp((s - max) * 0.125);
    for (int i = 0; i < size; ++i)
      EXPECT_NEAR(x[i], std::exp((scores[i] - max) * 0.125) / sum, 1e-6);
  }
}

TEST(SoftmaxTest, GradientMatchesFiniteDifferences) {
  const auto x = Wave(19, 0), dy = Wave(19, 1);
  std::vector<float> p = x, dx = dy;
  Softmax(p.data(), 19, 0.7f);
  SoftmaxGradient(p.data(), 19, 0.7f, dx.data());
  ExpectGradient(
      x, dx,
      [&](std::vector<float> at) {
        Softmax(at.data(), 19, 0.7f);
        return Dot(at, dy);
      },
      1e-3);
}

TEST(CrossEntropyTest, LossAndGradientMatchTheirFormulas) {
  const auto logits = Wave(50, 0);
  std::vector<float> gradient = logits;
  const double loss = CrossEntropyGradient(gradient.data(), 50, 17, 0.5f);
  double sum = 0;
  for (const float x : logits) sum += std::exp(double{x});
  EXPECT_NEAR(loss, std::log(sum) - logits[17], 1e-6);
  for (int i = 0; i < 50; ++i) {
    EXPECT_NEAR(gradient[i],
                0.5 * (std::exp(double{logits[i]}) / sum - (i == 17)), 1e-6);
  }
}

ModelConfig RopeConfig(int head_dim) {
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope_theta = 10000;
  return config;
}

TEST(RopeTest, TurnsPairsByPositionTimesFrequency) {
  const Rope rope(RopeConfig(8));
  float cos[4], sin[4];
  rope.Angles(3, cos, sin);
  std::vector<float> x = Wave(8, 0);
  const std::vector<float> before = x;
  Rotate(x.data(), 8, cos, sin);
  for (int i = 0; i < 4; ++i) {
    const double angle = 3 * std::pow(10000.0, -i / 4.0);
    EXPECT_NEAR(x[i],
                before[i] * std::cos(angle) - before[i + 4] * std::sin(angle),
                1e-6);
    EXPECT_NEAR(x[i + 4],
                before[i + 4] * std::cos(angle) + before[i] * std::sin(angle),
                1e-6);
  }
  RotateBack(x.data(), 8, cos, sin);
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(x[i], before[i], 1e-6);
}

TEST(RopeTest, LinearScalingAndDivisorsDivide) {
  ModelConfig config = RopeConfig(8);
  const std::vector<float> plain = Rope(config).frequencies();
  config.rope_scaling.type = RopeScalingType::kLinear;
  config.rope_scaling.factor = 4;
  const std::vector<float> linear = Rope(config).frequencies();
  config.rope_scaling.type = RopeScalingType::kPerChannel;
  config.rope_scaling.frequency_divisors = {1, 2, 3, 4};
  const std::vector<float> divided = Rope(config).frequencies();
  for (int i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(linear[i], plain[i] / 4);
    EXPECT_FLOAT_EQ(divided[i], plain[i] / (i + 1));
  }
}

TEST(RopeTest, Llama3KeepsHighFrequenciesAndDividesLowOnes) {
  ModelConfig config = RopeConfig(128);
  config.rope_theta = 500000;
  const std::vector<float> plain = Rope(config).frequencies();
  RopeScaling& scaling = config.rope_scaling;
  scaling.type = RopeScalingType::kLlama3;
  scaling.factor = 8;
  scaling.original_max_position = 8192;
  scaling.low_freq_factor = 1;
  scaling.high_freq_factor = 4;
  const std::vector<float> scaled = Rope(config).frequencies();
  EXPECT_FLOAT_EQ(scaled[0], plain[0]);
  EXPECT_FLOAT_EQ(scaled[63], plain[63] / 8);
  for (int i = 1; i < 64; ++i) {
    EXPECT_LE(scaled[i], plain[i] * 1.000001f);
    EXPECT_GE(scaled[i], plain[i] / 8.000001f);
    EXPECT_LT(scaled[i], scaled[i - 1]);
  }
}

TEST(RopeTest, YarnScalesCosAndSinByTheAttentionFactor) {
  ModelConfig config = RopeConfig(8);
  config.rope_scaling.type = RopeScalingType::kYarn;
  config.rope_scaling.factor = 4;
  config.rope_scaling.original_max_position = 4096;
  config.rope_scaling.attention_factor = 1.25f;
  float cos[4], sin[4];
  Rope(config).Angles(5, cos, sin);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(cos[i] * cos[i] + sin[i] * sin[i], 1.25 * 1.25, 1e-5);
}

// ---- Every instruction set that this machine can run

class OpsInstructionSetTest : public testing::InstructionSetTest {
 protected:
  // Sizes with and without a rest.
  static constexpr int kSizes[] = {1, 3, 16, 64, 100, 577};
};

// What has no exponential has the same bits in every set.
TEST_P(OpsInstructionSetTest, NormsAndRotationsAgreeToTheLastBit) {
  for (const int n : kSizes) {
    const auto x = Wave(n, 0), weight = Wave(n, 1), dy = Wave(n, 2);
    const auto all = [&] {
      std::vector<std::vector<float>> out(4, std::vector<float>(n));
      RmsNorm(x.data(), weight.data(), 1e-5f, n, out[0].data());
      RmsNormGradient(x.data(), weight.data(), 1e-5f, dy.data(), n,
                      out[1].data());
      out[2] = x;
      Rotate(out[2].data(), n, weight.data(), dy.data());
      out[3] = x;
      RotateBack(out[3].data(), n, weight.data(), dy.data());
      return out;
    };
    const auto here = all();
    testing::ForceInstructionSet(0);
    EXPECT_EQ(here, all()) << n;
    testing::ForceInstructionSet(GetParam());
  }
}

TEST_P(OpsInstructionSetTest, MatchesDouble) {
  for (const int n : kSizes) {
    const auto x = Wave(n, 0), up = Wave(n, 1);
    std::vector<float> y(n);
    RmsNorm(x.data(), up.data(), 1e-5f, n, y.data());
    const double rms = std::sqrt(Dot(x, x) / n + 1e-5);
    for (int i = 0; i < n; ++i) ASSERT_NEAR(y[i], x[i] / rms * up[i], 1e-6);

    SwiGlu(x.data(), up.data(), n, y.data());
    for (int i = 0; i < n; ++i) {
      ASSERT_NEAR(y[i], x[i] / (1 + std::exp(-double{x[i]})) * up[i], 2e-6);
    }
    y = x;
    Softmax(y.data(), n, 0.7f);
    double sum = 0;
    for (const float v : x) sum += std::exp(0.7 * v);
    for (int i = 0; i < n; ++i)
      ASSERT_NEAR(y[i] / (std::exp(0.7 * x[i]) / sum), 1, 1e-6);

    y = x;
    const double loss = CrossEntropyGradient(y.data(), n, n / 2, 0.5f);
    sum = 0;
    for (const float v : x) sum += std::exp(double{v});
    ASSERT_NEAR(loss, std::log(sum) - x[n / 2], 1e-6);
    for (int i = 0; i < n; ++i) {
      ASSERT_NEAR(y[i], 0.5 * (std::exp(double{x[i]}) / sum - (i == n / 2)),
                  1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, OpsInstructionSetTest,
                         ::testing::ValuesIn(testing::InstructionSets()),
                         testing::InstructionSetName());

}  // namespace
}  // namespace kvmix
