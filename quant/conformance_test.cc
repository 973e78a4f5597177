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

struct Offer {
  Side side;
  int bits;
  std::unique_ptr<BlockCodec> codec;
};

class QuantizerConformanceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    Component component;
    component.set_name(GetParam());
    ASSERT_OK_AND_ASSIGN(
        quantizer_, Registry<Quantizer>::Get().Make(component, "quantizer"));
  }

  // Everything that the quantizer offers for kHeadDim.
  std::vector<Offer> Offers() {
    std::vector<Offer> offers;
    for (Side side : {Side::kKey, Side::kValue}) {
      for (int bits = 1; bits < 16; ++bits) {
        const auto format = quantizer_->FormatFor(side, bits, kHeadDim);
        if (!format.ok()) continue;
        EXPECT_EQ(format->bits(), bits);
        // As a plan is read: without the quantizer's options.
        auto codec = MakeBlockCodec(*format, side, kHeadDim);
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

// A block whose `count` first tokens are those of x [tokens, D], `step` at a
// time.
std::vector<uint8_t> Write(const Offer& o, const std::vector<float>& x,
                           int count, int step) {
  std::vector<uint8_t> block(o.codec->bytes().total());
  for (int first = 0; first < count; first += step) {
    const int n = std::min(step, count - first);
    const float* rows = x.data() + first * kHeadDim;
    if (o.side == Side::kValue) {
      o.codec->Encode(rows, kHeadDim, first, n, block.data());
      continue;
    }
    std::vector<float> columns(n * kHeadDim);
    for (int t = 0; t < n; ++t)
      for (int d = 0; d < kHeadDim; ++d)
        columns[d * n + t] = rows[t * kHeadDim + d];
    o.codec->Encode(columns.data(), n, first, n, block.data());
  }
  return block;
}

// Tokens [first, first + count) as a codec shows them, rows `slack` longer than
// needed and filled with -7 before.
struct Shown {
  Shown(const Offer& o, const std::vector<uint8_t>& block, int first, int count,
        int slack = 0)
      : keys(o.side == Side::kKey),
        stride((keys ? count : kHeadDim) + slack),
        x((keys ? kHeadDim : count) * stride, -7.0f) {
    o.codec->Decode(block.data(), first, count, x.data(), stride);
  }
  float At(int t, int d) const {
    return keys ? x[d * stride + t] : x[t * stride + d];
  }
  const bool keys;
  const int64_t stride;
  std::vector<float> x;
};

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
    const std::vector<uint8_t> at_once = Write(o, x, tokens, tokens);
    EXPECT_EQ(Write(o, x, tokens, grain), at_once);
    EXPECT_EQ(Write(o, x, tokens, 3 * grain), at_once);
  }
}

TEST_P(QuantizerConformanceTest, ReadsAnyPartOfABlock) {
  for (const Offer& o : Offers()) {
    const int tokens = o.codec->block_tokens(), grain = o.codec->granularity();
    const std::vector<float> x = Normals(int64_t{tokens} * kHeadDim);
    const std::vector<uint8_t> block = Write(o, x, tokens, tokens);
    const int first = grain % tokens, count = tokens - first, slack = 3;
    const Shown all(o, block, 0, tokens), part(o, block, first, count, slack);
    for (int d = 0; d < kHeadDim; ++d)
      for (int t = 0; t < count; ++t)
        EXPECT_EQ(part.At(t, d), all.At(first + t, d));
    const int64_t used = part.stride - slack;
    for (size_t i = 0; i < part.x.size(); ++i) {
      if (static_cast<int64_t>(i) % part.stride >= used) {
        EXPECT_EQ(part.x[i], -7.0f);  // writes no more than asked
      }
    }
  }
}

TEST_P(QuantizerConformanceTest, MoreBitsMeanLessError) {
  std::map<Side, double> last;
  for (const Offer& o : Offers()) {
    const int tokens = o.codec->block_tokens();
    const std::vector<float> x = Normals(int64_t{tokens} * kHeadDim);
    const std::vector<uint8_t> block = Write(o, x, tokens, tokens);
    const Shown x_hat(o, block, 0, tokens);
    double error = 0;
    for (int t = 0; t < tokens; ++t) {
      for (int d = 0; d < kHeadDim; ++d) {
        ASSERT_TRUE(std::isfinite(x_hat.At(t, d)));
        const double e = x[t * kHeadDim + d] - x_hat.At(t, d);
        error += e * e;
      }
    }
    error /= static_cast<double>(x.size());
    if (last.contains(o.side)) {
      EXPECT_LT(error, last[o.side]);
    }
    last[o.side] = error;
  }
}

TEST_P(QuantizerConformanceTest, RefusesTheFormatOfAnotherScheme) {
  const int bits = Offers().front().bits;
  ASSERT_OK_AND_ASSIGN(QuantFormat format,
                       quantizer_->FormatFor(Side::kKey, bits, kHeadDim));
  format.set_quantizer("another");
  EXPECT_THAT(quantizer_->MakeCodec(format, Side::kKey, kHeadDim).status(),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                ::testing::HasSubstr("another")));
}

INSTANTIATE_TEST_SUITE_P(
    All, QuantizerConformanceTest,
    ::testing::ValuesIn(Registry<Quantizer>::Get().Names()),
    [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvmix
