// channel_boost, channel_levels, qjl and codebook.

#include <algorithm>
#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/channel_boost.pb.h"
#include "quant/channel_levels.pb.h"
#include "quant/codebook.pb.h"
#include "quant/codec_test_rows.h"
#include "quant/normal_code.h"
#include "quant/qjl.pb.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::MakeCodec;
using testing::MakeQuantizer;
using testing::MeanSquaredError;
using testing::NormalNumbers;
using testing::RoundTrip;
using testing::StatusIs;

constexpr int kDim = 64;

TEST(ChannelBoostTest, TheWidestChannelsAreThoseOfMoreBits) {
  const auto quantizer = MakeQuantizer("channel_boost");
  const auto codec = MakeCodec(*quantizer, Side::kKey, 2, kDim);
  std::vector<float> x = NormalNumbers(32 * kDim);
  for (int t = 0; t < 32; ++t)
    for (int d : {3, 17, 40, 63}) x[t * kDim + d] *= 10;
  const auto affine = MakeQuantizer("group_affine");
  const auto low =
      RoundTrip(*MakeCodec(*affine, Side::kKey, 2, kDim), Side::kKey, x);
  const auto high =
      RoundTrip(*MakeCodec(*affine, Side::kKey, 4, kDim), Side::kKey, x);
  const auto x_hat = RoundTrip(*codec, Side::kKey, x);
  std::vector<std::pair<float, int>> range;
  for (int d = 0; d < kDim; ++d) {
    float min = x[d], max = x[d];
    for (int t = 1; t < 32; ++t) {
      min = std::min(min, x[t * kDim + d]);
      max = std::max(max, x[t * kDim + d]);
    }
    range.push_back({min - max, d});
  }
  std::sort(range.begin(), range.end());
  for (int i = 0; i < kDim; ++i) {
    const int d = range[i].second;
    for (int t = 0; t < 32; ++t)
      EXPECT_EQ(x_hat[t * kDim + d], (i < 8 ? high : low)[t * kDim + d]);
  }
  // 2 bits and scale and zero point, 8 of 64 channels 2 bits more and a number.
  EXPECT_EQ(codec->effective_bits(kDim), 3 + 2.0 / 8 + 16.0 * 8 / (32 * kDim));
}

TEST(ChannelBoostTest, ValuesAreRefusedWithAWayOut) {
  EXPECT_THAT(
      MakeQuantizer("channel_boost")->FormatFor(Side::kValue, 2, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("per_side")));
}

// Weighted squared error of a channel_levels block of standard normal channels
// that are stretched by `sd`.
double WeightedError(const std::vector<float>& weight,
                     const std::vector<float>& sd, int bits, bool trellis) {
  ChannelLevelsOptions options;
  options.set_trellis(trellis);
  const auto quantizer = MakeQuantizer("channel_levels", options);
  const auto format = quantizer->FormatFor(Side::kKey, bits, kDim);
  const auto calibrated = quantizer->Calibrated(*format, weight);
  const auto codec = MakeBlockCodec(*calibrated, Side::kKey, kDim);
  std::vector<float> x = NormalNumbers(128 * kDim);
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * sd[i % kDim] + 3;
  const std::vector<float> x_hat = RoundTrip(**codec, Side::kKey, x);
  double error = 0;
  for (size_t i = 0; i < x.size(); ++i)
    error += weight[i % kDim] * (x[i] - x_hat[i]) * (x[i] - x_hat[i]) / 128;
  return error;
}

// The best that whole bits can do for normal channels, by trying for every
// price of a bit what each channel would buy: an independent way to the same
// optimum.
double BestError(const std::vector<float>& weight, const std::vector<float>& sd,
                 int bits, bool trellis) {
  const int most = MaxNormalCodeBits(trellis);
  std::vector<double> normal = {1};  // error of each number of bits
  for (int b = 1; b <= most; ++b)
    normal.push_back(NormalCodeOfBits(trellis, b).error());
  double best = 1e30;
  for (double price = 1e-9; price < 1e9; price *= 1.01) {
    int spent = 0;
    double error = 0;
    for (int d = 0; d < kDim; ++d) {
      double least = 1e30, of_least = 0;
      int bits_of_least = 0;
      for (int b = 0; b <= most; ++b) {
        const double e = weight[d] * sd[d] * sd[d] * normal[b];
        if (e + price * b < least)
          least = e + price * b, of_least = e, bits_of_least = b;
      }
      spent += bits_of_least;
      error += of_least;
    }
    if (spent <= bits * kDim) best = std::min(best, error);
  }
  return best;
}

class ChannelLevelsTest : public ::testing::TestWithParam<bool> {};

TEST_P(ChannelLevelsTest, SpendsBitsWhereKeysSpreadAndQueriesLook) {
  const bool trellis = GetParam();
  for (const int bits : {1, 2, 3}) {
    std::vector<float> weight(kDim, 1), sd(kDim, 1);
    const double flat = WeightedError(weight, sd, bits, trellis);
    EXPECT_NEAR(flat / (kDim * NormalCodeOfBits(trellis, bits).error()), 1,
                0.03);
    for (int d = 0; d < kDim; ++d) {
      weight[d] = std::exp2(static_cast<float>(d % 9) - 4);
      sd[d] = std::exp2(static_cast<float>(d % 5) - 2);
    }
    const double best = BestError(weight, sd, bits, trellis);
    // A block's own variances and least squares do a little better than the
    // variances that the channels were drawn with.
    EXPECT_LT(WeightedError(weight, sd, bits, trellis) / best, 1.05);
    EXPECT_GT(WeightedError(weight, sd, bits, trellis) / best, 0.8);
    // Equal bits would have cost several times as much.
    double equal = 0;
    for (int d = 0; d < kDim; ++d)
      equal +=
          weight[d] * sd[d] * sd[d] * NormalCodeOfBits(trellis, bits).error();
    EXPECT_GT(equal, 2 * best);
  }
}

TEST_P(ChannelLevelsTest, BytesAndConstantChannels) {
  ChannelLevelsOptions options;
  options.set_trellis(GetParam());
  const auto codec =
      MakeCodec(*MakeQuantizer("channel_levels", options), Side::kKey, 2, kDim);
  EXPECT_EQ(codec->effective_bits(kDim), 2 + 36.0 / 128);
  EXPECT_EQ(codec->granularity(), 128);
  std::vector<float> x = NormalNumbers(128 * kDim);
  for (int t = 0; t < 128; ++t) {
    x[t * kDim + 5] = -7;     // exact in half precision: needs no bits
    x[t * kDim + 6] = 70000;  // beyond half precision
  }
  x[9] = std::nanf("");
  const std::vector<float> x_hat = RoundTrip(*codec, Side::kKey, x);
  for (int t = 0; t < 128; ++t) {
    EXPECT_EQ(x_hat[t * kDim + 5], -7);
    EXPECT_NEAR(x_hat[t * kDim + 6], 70000, 5000);
    EXPECT_TRUE(std::isfinite(x_hat[t * kDim + 9]));
  }
}

INSTANTIATE_TEST_SUITE_P(Codes, ChannelLevelsTest, ::testing::Bool(),
                         [](const auto& trellis) {
                           return trellis.param ? "Trellis" : "Scalar";
                         });

TEST(ChannelLevelsErrorsTest, RefusesValuesAndWrongWeightsWithAWayOut) {
  const auto quantizer = MakeQuantizer("channel_levels");
  EXPECT_THAT(
      quantizer->FormatFor(Side::kValue, 2, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("per_side")));
  const auto format = quantizer->FormatFor(Side::kKey, 2, kDim);
  const std::vector<float> short_weight(kDim - 1, 1), bad(kDim, -1);
  for (const auto& weight : {short_weight, bad}) {
    const auto calibrated = quantizer->Calibrated(*format, weight);
    EXPECT_THAT(quantizer->MakeCodec(*calibrated, Side::kKey, kDim).status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("options.weight")));
  }
  ChannelLevelsOptions options;
  options.set_tokens(48);
  EXPECT_THAT(MakeQuantizer("channel_levels", options)
                  ->FormatFor(Side::kKey, 2, kDim)
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("48")));
}

// Over many projections the product with a query has the right mean; that with
// the key itself tells a wrong factor of some hundredths.
TEST(QjlTest, ProductsHaveNoBias) {
  const std::vector<float> keys = NormalNumbers(32 * kDim, 1);
  const std::vector<float> first(keys.begin(), keys.begin() + kDim);
  for (const std::vector<float>& query : {NormalNumbers(kDim, 2), first}) {
    const int kSeeds = 300;
    double exact = 0, mean_error = 0, mean_square = 0;
    for (int d = 0; d < kDim; ++d)
      exact += static_cast<double>(query[d]) * keys[d];
    for (int seed = 0; seed < kSeeds; ++seed) {
      QjlOptions options;
      options.set_seed(seed);
      const auto codec =
          MakeCodec(*MakeQuantizer("qjl", options), Side::kKey, 2, kDim);
      const auto k_hat = RoundTrip(*codec, Side::kKey, keys);
      double product = 0;
      for (int d = 0; d < kDim; ++d)
        product += static_cast<double>(query[d]) * k_hat[d];
      mean_error += (product - exact) / kSeeds;
      mean_square += (product - exact) * (product - exact) / kSeeds;
    }
    const double deviation = std::sqrt(mean_square / kSeeds);
    EXPECT_LT(std::fabs(mean_error), 4 * deviation);
    // So that a product of 0, or of 3 hundredths too much, would fail.
    EXPECT_GT(std::fabs(exact), (query == first ? 130 : 4) * deviation);
  }
}

TEST(QjlTest, StoresSignsAndANorm) {
  const auto codec = MakeCodec(*MakeQuantizer("qjl"), Side::kKey, 3, kDim);
  EXPECT_EQ(codec->effective_bits(kDim), 3 + 16.0 / kDim);
  EXPECT_THAT(
      MakeQuantizer("qjl")->FormatFor(Side::kValue, 2, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("per_side")));
}

TEST(CodebookTest, LevelsOfABlockAreNoWorseThanEquallySpacedOnes) {
  const auto affine = MakeQuantizer("group_affine");
  const auto quantizer = MakeQuantizer("codebook");
  for (Side side : {Side::kKey, Side::kValue}) {
    for (int bits = 1; bits <= 4; ++bits) {
      const auto codec = MakeCodec(*quantizer, side, bits, kDim);
      EXPECT_EQ(codec->bytes().side_data, 2 << bits);
      const std::vector<float> x = NormalNumbers(32 * kDim);
      const double equal = MeanSquaredError(
          x, RoundTrip(*MakeCodec(*affine, side, bits, kDim), side, x));
      EXPECT_LT(MeanSquaredError(x, RoundTrip(*codec, side, x)),
                (bits <= 2 ? 0.8 : 0.95) * equal);
    }
  }
}

TEST(CodebookTest, NumbersOnFixedLevelsAreKept) {
  CodebookOptions options;
  auto* levels = options.mutable_value()->add_levels();
  levels->set_bits(2);
  for (const float level : {0.0f, 0.125f, 0.5f, 1.0f}) levels->add_level(level);
  const auto quantizer = MakeQuantizer("codebook", options);
  const auto codec = MakeCodec(*quantizer, Side::kValue, 2, kDim);
  EXPECT_EQ(codec->bytes().side_data, 0);
  EXPECT_EQ(codec->granularity(), 1);
  std::vector<float> x(32 * kDim);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = 8 * levels->level(static_cast<int>(i * i / 3 % 4)) - 2;
  EXPECT_EQ(RoundTrip(*codec, Side::kValue, x), x);
}

TEST(CodebookTest, RefusesLevelsThatAreNotAscendingShares) {
  CodebookOptions options;
  auto* levels = options.mutable_key()->add_levels();
  levels->set_bits(1);
  levels->add_level(0.5f);
  levels->add_level(0.25f);
  Component component;
  component.set_name("codebook");
  component.mutable_options()->PackFrom(options);
  EXPECT_THAT(Registry<Quantizer>::Get().Make(component, "quantizer").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.key: levels for 1 bits")));
}

}  // namespace
}  // namespace kvmix
