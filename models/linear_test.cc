#include "models/linear.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/instruction_sets.h"
#include "kvmix/base/random.h"
#include "models/linear_cases.h"
#include "models/matmul.h"

namespace kvmix {
namespace {

using ::kvmix::testing::LinearCase;
using ::kvmix::testing::LinearCases;
using ::kvmix::testing::MakeLayer;
using ::kvmix::testing::RandomMatrix;
using ::kvmix::testing::StoredMatrix;

std::vector<float> RandomFloats(int64_t size, uint64_t stream) {
  CounterRandom random(7, stream);
  std::vector<float> x(size);
  for (float& v : x) v = static_cast<float>(random.Uniform() * 2 - 1);
  return x;
}

std::vector<float> Forward(const LinearLayer& layer,
                           const std::vector<float>& x, int num_threads = 2) {
  ThreadPool threads(num_threads);
  const int64_t rows = static_cast<int64_t>(x.size()) / layer.num_inputs();
  std::vector<float> y(rows * layer.num_outputs());
  layer.Forward(x.data(), rows, y.data(), threads);
  return y;
}

std::vector<float> InputGradient(const LinearLayer& layer,
                                 const std::vector<float>& dy) {
  ThreadPool threads(2);
  const int64_t rows = static_cast<int64_t>(dy.size()) / layer.num_outputs();
  std::vector<float> dx(rows * layer.num_inputs());
  layer.InputGradient(dy.data(), rows, dx.data(), threads);
  return dx;
}

// The sum of w[i] x[i] in double, and what its computation may be off by.
struct Reference {
  double sum = 0;
  double products = 0, weights = 0, inputs = 0;  // sums of squares
  double max_weight = 0, max_input = 0;
  int64_t count = 0;

  void Add(double w, double x) {
    sum += w * x;
    products += w * x * w * x;
    weights += w * w;
    inputs += x * x;
    max_weight = std::max(max_weight, std::abs(w));
    max_input = std::max(max_input, std::abs(x));
    ++count;
  }
  // Each step rounds a partial sum of about sqrt(products) by half an epsilon.
  double FloatTolerance() const {
    return 4 * 0x1p-24 * std::sqrt(products * static_cast<double>(count));
  }
  // Both factors of every product are off by 2^-9 at most. Equal codes of a
  // block are off alike: 9 deviations.
  double BFloat16Tolerance() const {
    return 9 * std::sqrt(2.0 / 3) * 0x1p-9 * std::sqrt(products) +
           FloatTolerance();
  }
  // Inputs, and weights if they were floats, are off by half a step of
  // max / 127; 6 deviations.
  double Int8Tolerance(bool weights_too) const {
    const double step = 6 / std::sqrt(12.0) / 127;
    return step * (max_input * std::sqrt(weights) +
                   (weights_too ? max_weight * std::sqrt(inputs) : 0)) +
           FloatTolerance();
  }
  double Tolerance(const LinearCase& c) const {
    switch (c.compute) {
      case ComputeType::kFloat32:
        return FloatTolerance();
      case ComputeType::kBFloat16:
        return BFloat16Tolerance();
      case ComputeType::kInt8:
        return Int8Tolerance(LayoutOf(c.stored).elements == 1);
    }
    return 0;
  }
};

void ExpectMatchesDoubleLoops(const LinearCase& c, int64_t rows, int64_t inputs,
                              int64_t outputs) {
  const StoredMatrix matrix = RandomMatrix(c.stored, outputs, inputs, 0);
  const auto layer = MakeLayer(c.compute, matrix);
  const auto bias = RandomFloats(outputs, 1);
  layer->SetBias(0, outputs, bias.data());
  const auto x = RandomFloats(rows * inputs, 2);
  const auto y = Forward(*layer, x);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      Reference reference;
      reference.Add(bias[n], 1);
      for (int64_t k = 0; k < inputs; ++k)
        reference.Add(matrix.values[n * inputs + k], x[m * inputs + k]);
      ASSERT_NEAR(y[m * outputs + n], reference.sum, reference.Tolerance(c))
          << c.Name() << " row " << m << " output " << n;
    }
  }
}

class LinearCaseTest : public ::testing::TestWithParam<LinearCase> {};

TEST_P(LinearCaseTest, MatchesDoubleLoops) {
  for (const auto& [rows, inputs, outputs] :
       {std::tuple(1, 256, 32), std::tuple(3, 512, 65), std::tuple(9, 256, 7),
        std::tuple(200, 768, 100)})
    ExpectMatchesDoubleLoops(GetParam(), rows, inputs, outputs);
}

// Rows of floats may have any length.
TEST_P(LinearCaseTest, InputsNeedNotBeWholeBlocks) {
  if (LayoutOf(GetParam().stored).elements != 1) GTEST_SKIP();
  for (const auto& [rows, inputs, outputs] :
       {std::tuple(1, 1, 1), std::tuple(2, 33, 31), std::tuple(7, 201, 64),
        std::tuple(50, 193, 65)})
    ExpectMatchesDoubleLoops(GetParam(), rows, inputs, outputs);
}

// The law the runtime's reproducibility rests on.
TEST_P(LinearCaseTest, ARowDependsNeitherOnOtherRowsNorOnThreads) {
  constexpr int64_t kRows = 397, kInputs = 512, kOutputs = 170;
  const auto layer =
      MakeLayer(GetParam().compute,
                RandomMatrix(GetParam().stored, kOutputs, kInputs, 0));
  const auto x = RandomFloats(kRows * kInputs, 2);
  const auto first_rows = [&](int64_t rows, int num_threads) {
    return Forward(*layer, {x.begin(), x.begin() + rows * kInputs},
                   num_threads);
  };
  const std::vector<float> all = first_rows(kRows, 1);
  for (const int num_threads : {2, 3})
    EXPECT_EQ(first_rows(kRows, num_threads), all) << num_threads << " threads";
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 25, 200}) {
    EXPECT_EQ(first_rows(rows, 2),
              std::vector<float>(all.begin(), all.begin() + rows * kOutputs))
        << rows << " rows";
  }
}

// Packed weights are the stored ones, to the last bit: forward, backward, and
// row by row.
TEST_P(LinearCaseTest, InFloat32PackedWeightsAreTheDecodedOnes) {
  if (GetParam().compute != ComputeType::kFloat32) GTEST_SKIP();
  constexpr int64_t kRows = 50, kInputs = 512, kOutputs = 130;
  const StoredMatrix packed =
      RandomMatrix(GetParam().stored, kOutputs, kInputs, 0);
  StoredMatrix plain = packed;
  plain.type = ElementType::kF32;
  const auto layer = MakeLayer(ComputeType::kFloat32, packed);
  const auto decoded = MakeLayer(ComputeType::kFloat32, plain);
  for (const int64_t rows : {int64_t{1}, int64_t{4}, kRows}) {
    const auto x = RandomFloats(rows * kInputs, 2);
    EXPECT_EQ(Forward(*layer, x), Forward(*decoded, x)) << rows << " rows";
  }
  const auto dy = RandomFloats(kRows * kOutputs, 3);
  EXPECT_EQ(InputGradient(*layer, dy), InputGradient(*decoded, dy));
  std::vector<float> row(kInputs);
  for (int64_t n = 0; n < kOutputs; ++n) {
    layer->CopyWeightRow(n, row.data());
    ASSERT_EQ(row,
              std::vector<float>(packed.values.begin() + n * kInputs,
                                 packed.values.begin() + (n + 1) * kInputs))
        << n;
  }
}

TEST_P(LinearCaseTest, InputGradientMatchesDoubleLoops) {
  if (GetParam().compute != ComputeType::kFloat32) GTEST_SKIP();
  for (const auto& [rows, inputs, outputs] :
       {std::tuple(1, 256, 32), std::tuple(13, 512, 225)}) {
    const StoredMatrix matrix =
        RandomMatrix(GetParam().stored, outputs, inputs, 0);
    const auto dy = RandomFloats(int64_t{rows} * outputs, 3);
    const auto dx =
        InputGradient(*MakeLayer(ComputeType::kFloat32, matrix), dy);
    for (int m = 0; m < rows; ++m) {
      for (int k = 0; k < inputs; ++k) {
        Reference reference;
        for (int n = 0; n < outputs; ++n)
          reference.Add(matrix.values[n * inputs + k], dy[m * outputs + n]);
        ASSERT_NEAR(dx[m * inputs + k], reference.sum,
                    reference.FloatTolerance())
            << "row " << m << " input " << k;
      }
    }
  }
}

// In 8 bits the rows of float types are rounded, in bf16 too.
TEST_P(LinearCaseTest, WeightRowsComeBack) {
  constexpr int64_t kInputs = 256, kOutputs = 45;
  const StoredMatrix matrix =
      RandomMatrix(GetParam().stored, kOutputs, kInputs, 0);
  const auto layer = MakeLayer(GetParam().compute, matrix);
  const bool is_plain = LayoutOf(GetParam().stored).elements == 1;
  double tolerance = 0;
  if (is_plain && GetParam().compute == ComputeType::kBFloat16)
    tolerance = 0x1p-9;
  if (is_plain && GetParam().compute == ComputeType::kInt8)
    tolerance = 0.51 / 127;
  std::vector<float> row(kInputs);
  for (int64_t n = 0; n < kOutputs; ++n) {
    layer->CopyWeightRow(n, row.data());
    for (int64_t k = 0; k < kInputs; ++k)
      ASSERT_NEAR(row[k], matrix.values[n * kInputs + k], tolerance);
  }
}

// What overflows must not come out as an ordinary number.
TEST_P(LinearCaseTest, NonFiniteInputsGiveNonFiniteOutputs) {
  const auto layer = MakeLayer(GetParam().compute,
                               RandomMatrix(GetParam().stored, 32, 256, 0));
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    auto x = RandomFloats(256, 2);
    x[100] = bad;
    for (const float y : Forward(*layer, x)) ASSERT_FALSE(std::isfinite(y));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LinearCaseTest,
                         ::testing::ValuesIn(LinearCases()),
                         [](const auto& info) { return info.param.Name(); });

// ---- Every instruction set that this machine can run

class LinearInstructionSetTest : public testing::InstructionSetTest {
 protected:
  static bool HasFma() {
    return (GetParam() & (HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL)) != 0;
  }
};

TEST_P(LinearInstructionSetTest, MatchesDoubleLoops) {
  for (const LinearCase& c : LinearCases()) {
    for (const int64_t rows : {1, 5, 30})
      ExpectMatchesDoubleLoops(c, rows, 256, 36);
  }
}

// Sets with fused multiply-adds give the same bits in every compute type.
TEST_P(LinearInstructionSetTest, FusedSetsAgreeToTheLastBit) {
  if (!HasFma()) GTEST_SKIP();
  for (const LinearCase& c : LinearCases()) {
    const auto layer = MakeLayer(c.compute, RandomMatrix(c.stored, 70, 512, 0));
    const auto x = RandomFloats(30 * 512, 2);
    const auto y = Forward(*layer, x);
    testing::ForceInstructionSet(0);
    EXPECT_EQ(y, Forward(*layer, x)) << c.Name();
    testing::ForceInstructionSet(GetParam());
  }
}

// Codes at both ends and inputs that are codes: every number on the way is an
// integer below 2^24, so that all sets must give the exact sum.
TEST_P(LinearInstructionSetTest, Int8ProductsAreExact) {
  constexpr int64_t kInputs = 64, kOutputs = 32, kRows = 7;
  for (const ElementType type : {ElementType::kQ4_0, ElementType::kQ8_0}) {
    StoredMatrix matrix = RandomMatrix(type, kOutputs, kInputs, 0);
    const BlockLayout& layout = LayoutOf(type);
    for (size_t b = 0; b < matrix.stored.size(); b += layout.bytes) {
      const uint16_t one = ToHalf(1).bits;
      std::memcpy(&matrix.stored[b], &one, sizeof(one));
      for (int i = 2; i < 20 && b % 3 == 0; ++i)
        matrix.stored[b + i % layout.bytes] = b % 2 == 0 ? 0xff : 0x80;
      std::memcpy(&matrix.stored[b], &one, sizeof(one));
    }
    DecodeBlocks(type, matrix.stored.data(), kOutputs * kInputs,
                 matrix.values.data());
    CounterRandom random(5, 0);
    std::vector<float> x(kRows * kInputs);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(random.Below(255)) - 127;
      if (i % 32 == 0) x[i] = i % 64 == 0 ? 127 : -127;  // the scale is 1
    }
    const auto y = Forward(*MakeLayer(ComputeType::kInt8, matrix), x);
    for (int64_t m = 0; m < kRows; ++m) {
      for (int64_t n = 0; n < kOutputs; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < kInputs; ++k)
          sum += double{x[m * kInputs + k]} * matrix.values[n * kInputs + k];
        ASSERT_EQ(y[m * kOutputs + n], sum) << LayoutOf(type).name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearInstructionSetTest,
                         ::testing::ValuesIn(testing::InstructionSets()),
                         testing::InstructionSetName());

// ---- Layers of several tensors, and matrices that are no layers

TEST(LinearTest, PartsOfDifferentTypesLieOneBelowTheOther) {
  const StoredMatrix parts[] = {RandomMatrix(ElementType::kQ4_1, 40, 256, 0),
                                RandomMatrix(ElementType::kF16, 33, 256, 1),
                                RandomMatrix(ElementType::kQ8_0, 64, 256, 2)};
  for (const ComputeType compute :
       {ComputeType::kFloat32, ComputeType::kBFloat16, ComputeType::kInt8}) {
    std::vector<LinearLayer::Part> declared;
    for (const StoredMatrix& part : parts)
      declared.push_back({part.rows, part.type});
    LinearLayer layer(compute, 256, declared);
    // In runs of rows, as a model is loaded.
    for (size_t i = 0; i < 3; ++i) {
      const int64_t row_bytes =
          static_cast<int64_t>(parts[i].stored.size()) / parts[i].rows;
      for (int64_t r = 0; r < parts[i].rows; r += 32) {
        layer.SetWeightRows(i, r, std::min<int64_t>(32, parts[i].rows - r),
                            parts[i].stored.data() + r * row_bytes,
                            parts[i].values.data() + r * 256);
      }
    }
    ASSERT_EQ(layer.num_outputs(), 137);
    for (const int64_t rows : {1, 20}) {
      const auto x = RandomFloats(rows * 256, 2);
      const auto y = Forward(layer, x);
      int64_t first = 0;
      for (const StoredMatrix& part : parts) {
        const auto alone = Forward(*MakeLayer(compute, part), x);
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < part.rows; ++n) {
            ASSERT_EQ(y[m * 137 + first + n], alone[m * part.rows + n])
                << ComputeTypeName(compute) << " output " << first + n;
          }
        }
        first += part.rows;
      }
    }
    std::vector<float> row(256);
    layer.CopyWeightRow(137 - 64 + 5, row.data());
    EXPECT_EQ(row, std::vector<float>(parts[2].values.begin() + 5 * 256,
                                      parts[2].values.begin() + 6 * 256));
  }
}

// Bytes that a layer keeps: the point of packing.
TEST(LinearTest, PackedWeightsTakeWhatTheTableSays) {
  const auto bytes_a_weight = [](ComputeType compute, ElementType stored) {
    const LinearLayer layer(compute, 512, {{1024, stored}});
    return static_cast<double>(layer.bytes() - 1024 * 4) / (512 * 1024);
  };
  using enum ElementType;
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kF32), 4);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kF16), 2);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kBF16), 2);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kQ4_0), 4.5 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kQ4_1), 5.0 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kQ8_0), 8.5 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kQ4_K), 6.0 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kFloat32, kQ6_K), 10.0 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kBFloat16, kF32), 2);
  EXPECT_EQ(bytes_a_weight(ComputeType::kBFloat16, kQ4_1), 5.0 / 8);
  EXPECT_EQ(bytes_a_weight(ComputeType::kInt8, kBF16), 8.5 / 8);
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
      Reference reference;
      for (int64_t k = 0; k < kInner; ++k)
        reference.Add(a[k * kRows + m], b[k * kColumns + n]);
      ASSERT_NEAR(c[m * kColumns + n], reference.sum,
                  reference.FloatTolerance());
    }
  }
}

}  // namespace
}  // namespace kvmix
