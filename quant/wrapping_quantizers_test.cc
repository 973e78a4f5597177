// The quantizers that stand around another one: hadamard, clip_search,
// sparse_outliers, low_rank_residual, per_side, pre_rope.

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Dense>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/half.h"
#include "quant/codec_test_rows.h"
#include "quant/hadamard.pb.h"
#include "quant/low_rank_residual.pb.h"
#include "quant/per_side.pb.h"
#include "quant/pre_rope.pb.h"
#include "quant/rotation.h"
#include "quant/sparse_outliers.pb.h"

namespace kvmix {
namespace {

using testing::EncodeRows;
using ::testing::HasSubstr;
using testing::MakeCodec;
using testing::MakeQuantizer;
using testing::MeanSquaredError;
using testing::NormalNumbers;
using testing::RoundTrip;
using testing::StatusIs;

constexpr int kDim = 64;

TEST(RotationTest, KeepsProductsAndHasAnInverse) {
  for (const int dim : {8, 64, 80, 96, 128}) {
    const Rotation rotation(dim, /*seed=*/3);
    const std::vector<float> x = NormalNumbers(4 * dim);
    std::vector<float> y = x;
    rotation.Forward(y.data(), 1, dim, 4);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        double before = 0, after = 0;
        for (int d = 0; d < dim; ++d) {
          before += static_cast<double>(x[i * dim + d]) * x[j * dim + d];
          after += static_cast<double>(y[i * dim + d]) * y[j * dim + d];
        }
        EXPECT_NEAR(after, before, 1e-5 * dim);
      }
    }
    rotation.Inverse(y.data(), 1, dim, 4);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
  }
}

// Entries are +-1/sqrt(n), and rows are the signs of a Walsh-Hadamard matrix.
TEST(RotationTest, IsTheHadamardMatrixTimesSigns) {
  const int dim = 16;
  const Rotation rotation(dim, /*seed=*/7);
  Eigen::MatrixXd r(dim, dim);
  for (int d = 0; d < dim; ++d) {
    std::vector<float> unit(dim);
    unit[d] = 1;
    rotation.Forward(unit.data(), 1, dim, 1);
    for (int i = 0; i < dim; ++i) r(i, d) = unit[i];
  }
  const Eigen::VectorXd signs = r.row(0);
  for (int i = 0; i < dim; ++i)
    for (int d = 0; d < dim; ++d)
      EXPECT_NEAR(r(i, d),
                  signs(d) * (__builtin_popcount(i & d) % 2 == 0 ? 1 : -1),
                  1e-6);
  EXPECT_NEAR(std::fabs(signs(3)), 0.25, 1e-6);
  EXPECT_NE(signs.minCoeff(), signs.maxCoeff());
}

// Per-token groups of the rotated token, by hand.
TEST(HadamardTest, IsTheInnerQuantizerOnRotatedTokens) {
  HadamardOptions options;
  options.set_seed(5);
  const auto inner = MakeQuantizer("group_affine");
  const auto outer = MakeQuantizer("hadamard", options);
  for (Side side : {Side::kKey, Side::kValue}) {
    const auto plain = MakeCodec(*inner, side, 3, kDim);
    const auto rotated = MakeCodec(*outer, side, 3, kDim);
    EXPECT_EQ(rotated->bytes().total(), plain->bytes().total());
    EXPECT_EQ(rotated->lane_block(), nullptr);
    const std::vector<float> x = NormalNumbers(32 * kDim);
    std::vector<float> y = x;
    const Rotation rotation(kDim, 5);
    rotation.Forward(y.data(), 1, kDim, 32);
    EXPECT_EQ(EncodeRows(*rotated, side, x), EncodeRows(*plain, side, y));
    std::vector<float> expected = RoundTrip(*plain, side, y);
    rotation.Inverse(expected.data(), 1, kDim, 32);
    const std::vector<float> x_hat = RoundTrip(*rotated, side, x);
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(x_hat[i], expected[i], 1e-5);
  }
}

TEST(HadamardTest, AFormatWhoseBitsAreNotTheInnerOnesIsRefused) {
  ASSERT_OK_AND_ASSIGN(
      QuantFormat format,
      MakeQuantizer("hadamard")->FormatFor(Side::kKey, 3, kDim));
  format.set_bits(2);
  EXPECT_THAT(MakeBlockCodec(format, Side::kKey, kDim).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("bits is 2 but options.inner.bits is 3")));
}

TEST(PreRopeTest, IsTheInnerQuantizerAndSaysThatKeysAreBeforeRope) {
  PreRopeOptions options;
  options.mutable_inner()->set_name("hadamard");
  const auto inner = MakeQuantizer("hadamard");
  const auto outer = MakeQuantizer("pre_rope", options);
  const auto plain = MakeCodec(*inner, Side::kKey, 3, kDim);
  const auto wrapped = MakeCodec(*outer, Side::kKey, 3, kDim);
  EXPECT_TRUE(wrapped->pre_rope());
  EXPECT_FALSE(plain->pre_rope());
  const std::vector<float> x = NormalNumbers(32 * kDim);
  EXPECT_EQ(EncodeRows(*wrapped, Side::kKey, x),
            EncodeRows(*plain, Side::kKey, x));
  EXPECT_EQ(RoundTrip(*wrapped, Side::kKey, x),
            RoundTrip(*plain, Side::kKey, x));
  // Attention's kernels would not turn the keys.
  EXPECT_EQ(
      MakeCodec(*MakeQuantizer("pre_rope"), Side::kKey, 3, kDim)->lane_block(),
      nullptr);
  ASSERT_OK_AND_ASSIGN(const QuantFormat value,
                       outer->FormatFor(Side::kValue, 3, kDim));
  EXPECT_EQ(value.quantizer(), "hadamard");
  EXPECT_OK(outer->MakeCodec(value, Side::kValue, kDim));
}

TEST(PreRopeTest, StandsAroundAllOthersAndIsForKeys) {
  HadamardOptions options;
  options.mutable_inner()->set_name("pre_rope");
  ASSERT_OK_AND_ASSIGN(
      const QuantFormat inside,
      MakeQuantizer("hadamard", options)->FormatFor(Side::kKey, 3, kDim));
  EXPECT_THAT(
      MakeBlockCodec(inside, Side::kKey, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("write \"pre_rope\" with an inner \"hadamard\"")));
  ASSERT_OK_AND_ASSIGN(
      const QuantFormat key,
      MakeQuantizer("pre_rope")->FormatFor(Side::kKey, 3, kDim));
  EXPECT_THAT(
      MakeBlockCodec(key, Side::kValue, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is for keys")));
}

TEST(ClipSearchTest, NoGroupHasMoreErrorAndAllTogetherHaveLess) {
  const auto plain = MakeQuantizer("group_affine");
  const auto clipped = MakeQuantizer("clip_search");
  for (Side side : {Side::kKey, Side::kValue}) {
    for (int bits = 1; bits <= 4; ++bits) {
      const auto a = MakeCodec(*plain, side, bits, kDim);
      const auto b = MakeCodec(*clipped, side, bits, kDim);
      EXPECT_NE(b->lane_block(), nullptr);
      EXPECT_EQ(b->bytes().total(), a->bytes().total());
      const std::vector<float> x = NormalNumbers(32 * kDim);
      const auto plain_hat = RoundTrip(*a, side, x);
      const auto clip_hat = RoundTrip(*b, side, x);
      for (int g = 0; g < 2 * 32; ++g) {
        double plain_error = 0, clip_error = 0;
        for (int i = 0; i < 32; ++i) {
          const int at =
              side == Side::kKey ? i * kDim + g : g / 2 * kDim + g % 2 * 32 + i;
          plain_error += std::pow(x[at] - plain_hat[at], 2);
          clip_error += std::pow(x[at] - clip_hat[at], 2);
        }
        EXPECT_LE(clip_error, plain_error * (1 + 1e-5));
      }
      const double gain =
          MeanSquaredError(x, clip_hat) / MeanSquaredError(x, plain_hat);
      EXPECT_LT(gain, bits <= 2 ? 0.8 : 0.97) << bits;
    }
  }
}

// One group, all pairs of ends by brute force.
TEST(ClipSearchTest, FindsNearlyTheBestOfAllEnds) {
  const auto codec =
      MakeCodec(*MakeQuantizer("clip_search"), Side::kValue, 2, 32);
  const std::vector<float> x = NormalNumbers(32 * 32);
  const std::vector<float> x_hat = RoundTrip(*codec, Side::kValue, x);
  double found = 0, best = 0;
  for (int t = 0; t < 32; ++t) {
    const float* row = x.data() + t * 32;
    const double low = *std::min_element(row, row + 32);
    const double high = *std::max_element(row, row + 32);
    double least = 1e9;
    for (int i = 0; i <= 12; ++i) {
      for (int j = 0; j <= 12; ++j) {
        const double a = low + i * (high - low) / 32;
        const double scale = (high - j * (high - low) / 32 - a) / 3;
        double error = 0;
        for (int d = 0; d < 32; ++d) {
          const double code =
              std::clamp(std::round((row[d] - a) / scale), 0.0, 3.0);
          error += std::pow(row[d] - (code * scale + a), 2);
        }
        least = std::min(least, error);
      }
    }
    best += least;
    for (int d = 0; d < 32; ++d)
      found += std::pow(x_hat[t * 32 + d] - row[d], 2);
  }
  EXPECT_LT(found, 1.05 * best);
}

TEST(SparseOutliersTest, TheFarthestElementsAreKeptInHalf) {
  SparseOutliersOptions options;
  options.set_fraction(0.02);
  const auto quantizer = MakeQuantizer("sparse_outliers", options);
  for (Side side : {Side::kKey, Side::kValue}) {
    const auto codec = MakeCodec(*quantizer, side, 2, kDim);
    const bool together = codec->granularity() > 1;
    std::vector<float> x = NormalNumbers(32 * kDim);
    const std::vector<float> shift = NormalNumbers(kDim, 9);
    for (int t = 0; t < 32; ++t)
      for (int d = 0; d < kDim; ++d) x[t * kDim + d] += 3 * shift[d];
    const std::vector<float> x_hat = RoundTrip(*codec, side, x);
    // Granules: all 32 tokens, outliers against their channel's mean; or one
    // token, against its own.
    const int granules = together ? 1 : 32;
    const int size = 32 * kDim / granules;
    const int count = static_cast<int>(std::lround(0.02 * size));
    EXPECT_EQ(codec->bytes().side_data, granules * count * (together ? 4 : 3));
    for (int g = 0; g < granules; ++g) {
      std::vector<std::pair<double, int>> distance;
      for (int i = g * size; i < (g + 1) * size; ++i) {
        double mean = 0;
        if (together) {
          for (int t = 0; t < 32; ++t) mean += x[t * kDim + i % kDim] / 32.0;
        } else {
          for (int d = 0; d < kDim; ++d) mean += x[g * kDim + d] / kDim;
        }
        distance.push_back({-std::fabs(x[i] - mean), i});
      }
      std::sort(distance.begin(), distance.end());
      for (int i = 0; i < count; ++i)
        EXPECT_EQ(x_hat[distance[i].second],
                  ToFloat(ToHalf(x[distance[i].second])));
    }
    EXPECT_LT(
        MeanSquaredError(x, x_hat),
        MeanSquaredError(x, RoundTrip(*MakeCodec(*MakeQuantizer("group_affine"),
                                                 side, 2, kDim),
                                      side, x)));
  }
}

TEST(LowRankResidualTest, IsTheBestApproximationOfTheError) {
  LowRankResidualOptions options;
  options.set_rank(3);
  options.set_tokens(96);
  const auto quantizer = MakeQuantizer("low_rank_residual", options);
  for (Side side : {Side::kKey, Side::kValue}) {
    const auto codec = MakeCodec(*quantizer, side, 2, kDim);
    ASSERT_EQ(codec->block_tokens(), 96);
    EXPECT_EQ(codec->bytes().side_data, 2 * 3 * (96 + kDim));
    const std::vector<float> x = NormalNumbers(96 * kDim);
    const auto inner = MakeCodec(*MakeQuantizer("group_affine"), side, 2, kDim);
    Eigen::MatrixXd error(96, kDim);
    for (int b = 0; b < 3; ++b) {
      const std::vector<float> part(x.begin() + b * 32 * kDim,
                                    x.begin() + (b + 1) * 32 * kDim);
      const std::vector<float> part_hat = RoundTrip(*inner, side, part);
      for (int t = 0; t < 32; ++t)
        for (int d = 0; d < kDim; ++d)
          error(b * 32 + t, d) =
              static_cast<double>(part[t * kDim + d]) - part_hat[t * kDim + d];
    }
    const Eigen::VectorXd singular =
        Eigen::JacobiSVD<Eigen::MatrixXd>(error).singularValues();
    const double best = singular.tail(kDim - 3).squaredNorm();
    const double found =
        MeanSquaredError(x, RoundTrip(*codec, side, x)) * 96 * kDim;
    EXPECT_GT(found, 0.999 * best);
    EXPECT_LT(found, 1.01 * best);
    EXPECT_LT(found, 0.95 * error.squaredNorm());
  }
}

TEST(LowRankResidualTest, TokensMustHoldWholeInnerBlocks) {
  LowRankResidualOptions options;
  options.set_tokens(40);
  EXPECT_THAT(MakeQuantizer("low_rank_residual", options)
                  ->FormatFor(Side::kKey, 2, kDim)
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("must divide options.tokens 40")));
}

TEST(PerSideTest, KeysAndValuesHaveQuantizersOfTheirOwn) {
  PerSideOptions options;
  options.mutable_key()->set_name("turbo");
  options.mutable_value()->set_name("mxfp4");
  const auto quantizer = MakeQuantizer("per_side", options);
  ASSERT_OK_AND_ASSIGN(QuantFormat key,
                       quantizer->FormatFor(Side::kKey, 3, kDim));
  EXPECT_EQ(key.quantizer(), "turbo");
  ASSERT_OK_AND_ASSIGN(QuantFormat value,
                       quantizer->FormatFor(Side::kValue, 4, kDim));
  EXPECT_EQ(value.quantizer(), "mxfp4");
  options.mutable_value()->set_name("none");
  Component component;
  component.set_name("per_side");
  component.mutable_options()->PackFrom(options);
  EXPECT_THAT(
      Registry<Quantizer>::Get().Make(component, "quantizer").status(),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("options.value")));
}

}  // namespace
}  // namespace kvmix
