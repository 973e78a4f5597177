// channel_boost, qjl and codebook.

#include <algorithm>
#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/channel_boost.pb.h"
#include "quant/codebook.pb.h"
#include "quant/codec_test_rows.h"
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

// Over many projections the product with a query has the right mean.
TEST(QjlTest, ProductsHaveNoBias) {
  const std::vector<float> keys = NormalNumbers(32 * kDim, 1);
  const std::vector<float> query = NormalNumbers(kDim, 2);
  const int kSeeds = 300;
  double mean_error = 0, mean_square = 0, size = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    QjlOptions options;
    options.set_seed(seed);
    const auto codec =
        MakeCodec(*MakeQuantizer("qjl", options), Side::kKey, 2, kDim);
    const auto k_hat = RoundTrip(*codec, Side::kKey, keys);
    double product = 0, exact = 0;
    for (int d = 0; d < kDim; ++d) {
      product += static_cast<double>(query[d]) * k_hat[d];
      exact += static_cast<double>(query[d]) * keys[d];
    }
    mean_error += (product - exact) / kSeeds;
    mean_square += (product - exact) * (product - exact) / kSeeds;
    size = std::max(size, std::fabs(exact));
  }
  const double deviation = std::sqrt(mean_square / kSeeds);
  EXPECT_LT(std::fabs(mean_error), 4 * deviation);
  EXPECT_GT(size, 4 * deviation);  // so that a product of 0 would fail
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
