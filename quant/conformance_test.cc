// What every quantizer must do, over all that are linked.

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr int kHeadDim = 64;

class QuantizerConformanceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    Component component;
    component.set_name(GetParam());
    ASSERT_OK_AND_ASSIGN(
        quantizer_, Registry<Quantizer>::Get().Make(component, "quantizer"));
  }

  struct Offer {
    Side side;
    int bits;
    std::unique_ptr<BlockCodec> codec;
  };
  // Everything that the quantizer offers for kHeadDim.
  std::vector<Offer> Offers() {
    std::vector<Offer> offers;
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int bits = 1; bits < 16; ++bits) {
        const auto format = quantizer_->FormatFor(side, bits, kHeadDim);
        if (!format.ok()) continue;
        EXPECT_EQ(format->quantizer(), GetParam());
        EXPECT_EQ(format->bits(), bits);
        auto codec = quantizer_->MakeCodec(*format, kHeadDim);
        EXPECT_OK(codec);
        if (codec.ok()) offers.push_back({side, bits, *std::move(codec)});
      }
    }
    EXPECT_FALSE(offers.empty());
    return offers;
  }

  std::unique_ptr<Quantizer> quantizer_;
};

std::vector<float> Normals(int64_t n) {
  CounterRandom random(5, 0);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

// A block of which `count` tokens are written, `step` at a time.
std::vector<uint8_t> Write(const BlockCodec& codec, const std::vector<float>& x,
                           int count, int step) {
  std::vector<uint8_t> block(codec.bytes().total());
  for (int t = 0; t < count; t += step)
    codec.Encode(x.data() + t * kHeadDim, t, std::min(step, count - t),
                 block.data());
  return block;
}

TEST_P(QuantizerConformanceTest, SixteenBitsIsNotQuantized) {
  for (Side side : {Side::kKey, Side::kValue}) {
    ASSERT_OK_AND_ASSIGN(QuantFormat format,
                         quantizer_->FormatFor(side, 16, kHeadDim));
    EXPECT_EQ(format.ShortDebugString(), "bits: 16");
  }
}

TEST_P(QuantizerConformanceTest, RefusesBitsThatMakeNoSense) {
  for (int bits : {-1, 0, 17, 1 << 30})
    EXPECT_FALSE(quantizer_->FormatFor(Side::kKey, bits, kHeadDim).ok());
}

TEST_P(QuantizerConformanceTest, BlocksAreSmallerThanHalfAndWellFormed) {
  for (const Offer& o : Offers()) {
    EXPECT_GT(o.codec->granularity(), 0);
    EXPECT_EQ(o.codec->block_tokens() % o.codec->granularity(), 0);
    EXPECT_GT(o.codec->bytes().codes, 0);
    EXPECT_GE(o.codec->bytes().scales, 0);
    EXPECT_GE(o.codec->bytes().zeros, 0);
    EXPECT_LT(o.codec->effective_bits(kHeadDim), 16);
  }
}

TEST_P(QuantizerConformanceTest, BytesDoNotDependOnHowTokensArrive) {
  for (const Offer& o : Offers()) {
    const int tokens = o.codec->block_tokens(), grain = o.codec->granularity();
    const std::vector<float> x = Normals(int64_t{tokens} * kHeadDim);
    const std::vector<uint8_t> at_once = Write(*o.codec, x, tokens, tokens);
    EXPECT_EQ(Write(*o.codec, x, tokens, grain), at_once);
    EXPECT_EQ(Write(*o.codec, x, tokens, 3 * grain), at_once);
  }
}

TEST_P(QuantizerConformanceTest, ReadsAnyPartOfABlockEitherWay) {
  for (const Offer& o : Offers()) {
    const int tokens = o.codec->block_tokens(), grain = o.codec->granularity();
    const std::vector<float> x = Normals(int64_t{tokens} * kHeadDim);
    const std::vector<uint8_t> block = Write(*o.codec, x, tokens, tokens);
    std::vector<float> all(x.size());
    o.codec->Decode(block.data(), 0, tokens, all.data());
    const int first = grain % tokens, count = tokens - first;
    const int64_t stride = count + 3;
    std::vector<float> part(int64_t{count} * kHeadDim);
    std::vector<float> transposed(stride * kHeadDim, -7.0f);
    o.codec->Decode(block.data(), first, count, part.data());
    o.codec->DecodeTransposed(block.data(), first, count, transposed.data(),
                              stride);
    for (int d = 0; d < kHeadDim; ++d) {
      for (int t = 0; t < count; ++t) {
        const float expected = all[(first + t) * kHeadDim + d];
        EXPECT_EQ(part[t * kHeadDim + d], expected);
        EXPECT_EQ(transposed[d * stride + t], expected);
      }
      for (int64_t t = count; t < stride; ++t)  // writes no more than asked
        EXPECT_EQ(transposed[d * stride + t], -7.0f);
    }
  }
}

TEST_P(QuantizerConformanceTest, MoreBitsMeanLessError) {
  std::map<Side, double> last;
  for (const Offer& o : Offers()) {
    const int tokens = o.codec->block_tokens();
    const std::vector<float> x = Normals(int64_t{tokens} * kHeadDim);
    const std::vector<uint8_t> block = Write(*o.codec, x, tokens, tokens);
    std::vector<float> x_hat(x.size());
    o.codec->Decode(block.data(), 0, tokens, x_hat.data());
    double error = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_TRUE(std::isfinite(x_hat[i]));
      error += (x[i] - x_hat[i]) * (x[i] - x_hat[i]);
    }
    error /= static_cast<double>(x.size());
    if (last.contains(o.side)) {
      EXPECT_LT(error, last[o.side]);
    }
    last[o.side] = error;
  }
}

TEST_P(QuantizerConformanceTest, RefusesTheFormatOfAnotherScheme) {
  ASSERT_OK_AND_ASSIGN(QuantFormat format,
                       quantizer_->FormatFor(Side::kKey, 2, kHeadDim));
  format.set_quantizer("another");
  EXPECT_THAT(quantizer_->MakeCodec(format, kHeadDim).status(),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                ::testing::HasSubstr("another")));
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizerConformanceTest,
    ::testing::ValuesIn(Registry<Quantizer>::Get().Names()),
    [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvmix
