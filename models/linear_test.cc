#include "models/linear.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"
#include "models/matmul.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

std::vector<float> RandomFloats(int64_t size, uint64_t stream) {
  CounterRandom random(7, stream);
  std::vector<float> x(size);
  for (float& v : x) v = static_cast<float>(random.Uniform() * 2 - 1);
  return x;
}

std::unique_ptr<LinearLayer> MakeLayer(int64_t inputs, int64_t outputs,
                                       const std::vector<float>& weights,
                                       const std::vector<float>& bias) {
  auto layer = LinearLayer::Create(ComputeType::kFloat32, inputs, outputs);
  EXPECT_OK(layer.status());
  // In two parts, as fused projections are loaded.
  const int64_t half = outputs / 2;
  (*layer)->SetWeightRows(0, half, weights.data());
  (*layer)->SetWeightRows(half, outputs - half, weights.data() + half * inputs);
  (*layer)->SetBias(0, outputs, bias.data());
  (*layer)->Pack();
  return *std::move(layer);
}

// |error| of a sum of n products of numbers below 1, each step rounded once.
float Tolerance(int64_t n) {
  return static_cast<float>(n) * 6e-8f * std::sqrt(static_cast<float>(n));
}

class LinearTest : public ::testing::TestWithParam<std::tuple<int, int, int>> {
};

TEST_P(LinearTest, MatchesDoubleLoops) {
  const auto [rows, inputs, outputs] = GetParam();
  const auto weights = RandomFloats(int64_t{outputs} * inputs, 0);
  const auto bias = RandomFloats(outputs, 1);
  const auto x = RandomFloats(int64_t{rows} * inputs, 2);
  const auto layer = MakeLayer(inputs, outputs, weights, bias);
  ThreadPool threads(2);
  std::vector<float> y(rows * outputs);
  layer->Forward(x.data(), rows, y.data(), threads);
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < outputs; ++n) {
      double sum = bias[n];
      for (int k = 0; k < inputs; ++k)
        sum += double{x[m * inputs + k]} * weights[n * inputs + k];
      ASSERT_NEAR(y[m * outputs + n], sum, Tolerance(inputs))
          << "row " << m << " output " << n;
    }
  }
}

TEST_P(LinearTest, TransposedMatchesDoubleLoops) {
  const auto [rows, inputs, outputs] = GetParam();
  const auto weights = RandomFloats(int64_t{outputs} * inputs, 0);
  const auto dy = RandomFloats(int64_t{rows} * outputs, 3);
  const auto layer =
      MakeLayer(inputs, outputs, weights, std::vector<float>(outputs));
  ThreadPool threads(2);
  std::vector<float> dx(rows * inputs);
  MultiplyTransposed(dy.data(), rows, *layer->matrix(), dx.data(), threads);
  for (int m = 0; m < rows; ++m) {
    for (int k = 0; k < inputs; ++k) {
      double sum = 0;
      for (int n = 0; n < outputs; ++n)
        sum += double{dy[m * outputs + n]} * weights[n * inputs + k];
      ASSERT_NEAR(dx[m * inputs + k], sum, Tolerance(outputs))
          << "row " << m << " input " << k;
    }
  }
}

TEST_P(LinearTest, WeightRowsComeBack) {
  const auto [rows, inputs, outputs] = GetParam();
  const auto weights = RandomFloats(int64_t{outputs} * inputs, 0);
  const auto layer =
      MakeLayer(inputs, outputs, weights, std::vector<float>(outputs));
  std::vector<float> row(inputs);
  for (int n = 0; n < outputs; ++n) {
    layer->CopyWeightRow(n, row.data());
    for (int k = 0; k < inputs; ++k)
      ASSERT_EQ(row[k], weights[n * inputs + k]) << n << ", " << k;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LinearTest,
    ::testing::Values(std::tuple(1, 1, 1), std::tuple(1, 576, 96),
                      std::tuple(2, 33, 31), std::tuple(7, 200, 64),
                      std::tuple(50, 193, 65), std::tuple(200, 400, 290)),
    [](const auto& info) {
      return "m" + std::to_string(std::get<0>(info.param)) + "_k" +
             std::to_string(std::get<1>(info.param)) + "_n" +
             std::to_string(std::get<2>(info.param));
    });

// The law the runtime's reproducibility rests on.
TEST(LinearTest, ARowDependsNeitherOnOtherRowsNorOnThreads) {
  constexpr int64_t kRows = 397, kInputs = 450, kOutputs = 170;
  const auto layer =
      MakeLayer(kInputs, kOutputs, RandomFloats(kOutputs * kInputs, 0),
                RandomFloats(kOutputs, 1));
  const auto x = RandomFloats(kRows * kInputs, 2);
  ThreadPool one(1);
  std::vector<float> alone(kRows * kOutputs), together(kRows * kOutputs);
  for (int64_t m = 0; m < kRows; ++m) {
    layer->Forward(x.data() + m * kInputs, 1, alone.data() + m * kOutputs, one);
  }
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool threads(num_threads);
    layer->Forward(x.data(), kRows, together.data(), threads);
    EXPECT_EQ(alone, together) << num_threads << " threads";
  }
}

TEST(MatMulTest, LeftOperandMayBeTransposed) {
  constexpr int64_t kRows = 50, kInner = 201, kColumns = 40;
  const auto a = RandomFloats(kInner * kRows, 0);  // [inner, rows]
  const auto b = RandomFloats(kInner * kColumns, 1);
  PanelMatrix panels(kInner, kColumns);
  panels.SetRows(0, kInner, b.data(), kColumns);
  std::vector<float> c(kRows * kColumns);
  for (int64_t p = 0; p < panels.num_panels(); ++p) {
    MultiplyPanel({a.data(), 1, kRows}, kRows, kInner, panels.panel(p),
                  panels.width(p), c.data() + p * PanelMatrix::kWidth,
                  kColumns);
  }
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < kColumns; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < kInner; ++k)
        sum += double{a[k * kRows + m]} * b[k * kColumns + n];
      ASSERT_NEAR(c[m * kColumns + n], sum, Tolerance(kInner));
    }
  }
}

// On a CPU without AVX-512 this shows the refusal, elsewhere the accuracy.
TEST(BFloat16LinearTest, IsAccurateOrRefused) {
  constexpr int64_t kRows = 150, kInputs = 96, kOutputs = 100;
  auto layer = LinearLayer::Create(ComputeType::kBFloat16, kInputs, kOutputs);
  if (!BFloat16IsSupported().ok()) {
    EXPECT_THAT(layer.status(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                         HasSubstr("use compute: FLOAT32")));
    return;
  }
  ASSERT_OK(layer.status());
  const auto weights = RandomFloats(kOutputs * kInputs, 0);
  const auto bias = RandomFloats(kOutputs, 1);
  const auto x = RandomFloats(kRows * kInputs, 2);
  (*layer)->SetWeightRows(0, kOutputs, weights.data());
  (*layer)->SetBias(0, kOutputs, bias.data());
  (*layer)->Pack();
  std::vector<float> one_thread(kRows * kOutputs), y(kRows * kOutputs);
  ThreadPool one(1), three(3);
  (*layer)->Forward(x.data(), kRows, one_thread.data(), one);
  (*layer)->Forward(x.data(), kRows, y.data(), three);
  EXPECT_EQ(one_thread, y);
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      double sum = bias[n], size = 0;
      for (int64_t k = 0; k < kInputs; ++k) {
        const double product =
            double{x[m * kInputs + k]} * weights[n * kInputs + k];
        sum += product;
        size += product * product;
      }
      // Both factors are rounded to 8 bits: 2^-9 each at most, of random sign.
      ASSERT_NEAR(y[m * kOutputs + n], sum, 4 * std::sqrt(size) / 256);
    }
  }
  std::vector<float> row(kInputs);
  (*layer)->CopyWeightRow(99, row.data());
  for (int64_t k = 0; k < kInputs; ++k)
    ASSERT_NEAR(row[k], weights[99 * kInputs + k], 1.0 / 256);
}

}  // namespace
}  // namespace kvmix
