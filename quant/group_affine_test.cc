#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "quant/group_affine.pb.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<std::unique_ptr<Quantizer>> Make(
    const GroupAffineOptions& options = {}) {
  Component component;
  component.set_name("group_affine");
  component.mutable_options()->PackFrom(options);
  return Registry<Quantizer>::Get().Make(component, "quantizer");
}

double EffectiveBits(const Quantizer& quantizer, Side side, int bits) {
  const auto format = quantizer.FormatFor(side, bits, 64);
  EXPECT_OK(format);
  const auto codec = quantizer.MakeCodec(*format, side, 64);
  EXPECT_OK(codec);
  return (*codec)->effective_bits(64);
}

TEST(GroupAffineTest, DefaultsAreKeysPerChannelAndValuesPerToken) {
  ASSERT_OK_AND_ASSIGN(auto quantizer, Make());
  ASSERT_OK_AND_ASSIGN(QuantFormat key,
                       quantizer->FormatFor(Side::kKey, 3, 64));
  EXPECT_EQ(key.ShortDebugString(),
            "quantizer: \"group_affine\" bits: 3 group_size: 32 axis: "
            "PER_CHANNEL");
  ASSERT_OK_AND_ASSIGN(QuantFormat value,
                       quantizer->FormatFor(Side::kValue, 4, 64));
  EXPECT_EQ(value.ShortDebugString(),
            "quantizer: \"group_affine\" bits: 4 group_size: 32 axis: "
            "PER_TOKEN");
}

TEST(GroupAffineTest, EffectiveBitsCountScalesAndZeroPoints) {
  ASSERT_OK_AND_ASSIGN(auto quantizer, Make());
  for (Side side : {Side::kKey, Side::kValue})
    for (int bits = 1; bits <= 8; ++bits)
      EXPECT_EQ(EffectiveBits(*quantizer, side, bits), bits + 1);
}

TEST(GroupAffineTest, KvmixsThreeBitWordsTakeThreeBitKeysOfElevenTokens) {
  for (auto packing :
       {QuantFormat::KVMIX_3BIT_11, QuantFormat::KVMIX_3BIT_11_RESCALED}) {
    GroupAffineOptions options;
    options.mutable_key()->set_three_bit(packing);
    ASSERT_OK_AND_ASSIGN(auto quantizer, Make(options));
    ASSERT_OK_AND_ASSIGN(QuantFormat format,
                         quantizer->FormatFor(Side::kKey, 3, 64));
    EXPECT_EQ(format.packing(), packing);
    ASSERT_OK_AND_ASSIGN(auto codec, MakeBlockCodec(format, Side::kKey, 64));
    EXPECT_EQ(codec->block_tokens(), 11);
    EXPECT_EQ(codec->granularity(), 11);
    EXPECT_NEAR(codec->effective_bits(64), 64.0 / 11, 1e-12);  // 5.82
    ASSERT_OK_AND_ASSIGN(format, quantizer->FormatFor(Side::kKey, 2, 64));
    EXPECT_EQ(format.packing(), QuantFormat::DENSE);
    EXPECT_EQ(format.group_size(), 32);
  }
}

TEST(GroupAffineTest, APerChannelBlockIsItsGroupsOneChannelAfterAnother) {
  ASSERT_OK_AND_ASSIGN(auto quantizer, Make());
  ASSERT_OK_AND_ASSIGN(QuantFormat format,
                       quantizer->FormatFor(Side::kKey, 1, 8));
  ASSERT_OK_AND_ASSIGN(auto codec, MakeBlockCodec(format, Side::kKey, 8));
  // Channel c is c everywhere but at token c, where it is c + 1.
  std::vector<float> x(32 * 8);
  for (int t = 0; t < 32; ++t)
    for (int c = 0; c < 8; ++c)
      x[c * 32 + t] = static_cast<float>(c + (t == c));
  ASSERT_EQ(codec->bytes().codes, 4 * 8);
  ASSERT_EQ(codec->bytes().total(), 4 * 8 + 2 * 8 + 2 * 8);
  std::vector<uint32_t> block(codec->bytes().total() / 4);
  codec->Encode(x.data(), 32, 0, 32, reinterpret_cast<uint8_t*>(block.data()));
  for (int c = 0; c < 8; ++c) EXPECT_EQ(block[c], 1u << c);
  for (int c = 8; c < 12; ++c) EXPECT_EQ(block[c], 0x3c003c00u);  // halves 1, 1
  EXPECT_EQ(block[12], 0x3c000000u);                              // 0, 1
  EXPECT_EQ(block[13], 0x42004000u);                              // 2, 3
}

TEST(GroupAffineTest, RefusesFormatsThatItCannotRead) {
  const auto error = [](auto edit, int head_dim = 64) {
    QuantFormat format;
    format.set_quantizer("group_affine");
    format.set_bits(3);
    format.set_group_size(32);
    format.set_axis(QuantFormat::PER_TOKEN);
    edit(format);
    return MakeBlockCodec(format, Side::kValue, head_dim).status();
  };
  const auto invalid = [](const char* text) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text));
  };
  EXPECT_OK(error([](QuantFormat&) {}));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_bits(9); }),
              invalid("bits is 9 but must be in [1, 8]"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_bits(-1); }), invalid("bits"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_bits(16); }), invalid("bits"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_group_size(48); }, 128),
              invalid("group_size is 48 but must divide head_dim 128 "
                      "(PER_TOKEN); use 8, 16, 32, 64, 128"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_group_size(0); }),
              invalid("group_size is 0 but must be in [1, 4096]"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_group_size(1 << 30); }),
              invalid("group_size"));
  EXPECT_THAT(error([](QuantFormat& f) { f.clear_axis(); }), invalid("axis"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_axis(QuantFormat::Axis(77)); }),
              invalid("axis is 77"));
  EXPECT_THAT(
      error([](QuantFormat& f) { f.set_packing(QuantFormat::Packing(9)); }),
      invalid("packing is 9"));
  EXPECT_THAT(
      error([](QuantFormat& f) { f.set_packing(QuantFormat::KVMIX_3BIT_11); }),
      invalid("axis must be PER_CHANNEL with packing KVMIX_3BIT_11"));
  EXPECT_THAT(error([](QuantFormat& f) {
                f.set_packing(QuantFormat::KVMIX_3BIT_11);
                f.set_axis(QuantFormat::PER_CHANNEL);
              }),
              invalid("group_size is 32 but must be 11"));
  EXPECT_THAT(error([](QuantFormat& f) {
                f.set_packing(QuantFormat::KVMIX_3BIT_11_RESCALED);
                f.set_bits(2);
              }),
              invalid("bits is 2 but must be 3"));
  EXPECT_THAT(error([](QuantFormat&) {}, 0), invalid("head_dim is 0"));
  EXPECT_THAT(error([](QuantFormat&) {}, 12), invalid("multiple of 8"));
  EXPECT_THAT(error([](QuantFormat& f) { f.set_quantizer("gone"); }),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("quantizer \"gone\" is not linked"),
                             HasSubstr("group_affine"))));
}

TEST(GroupAffineTest, RefusesOptionsThatNoHeadDimCanServe) {
  GroupAffineOptions options;
  options.mutable_value()->set_three_bit(QuantFormat::KVMIX_3BIT_11);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("quantizer \"group_affine\": value.three_bit "
                                 "is KVMIX_3BIT_11 but must be DENSE")));
  options.Clear();
  options.mutable_key()->set_group_size(-1);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("key.group_size is -1")));
}

TEST(GroupAffineTest, NamesTheSideWhoseGroupsDoNotFit) {
  ASSERT_OK_AND_ASSIGN(auto quantizer, Make());
  EXPECT_THAT(quantizer->FormatFor(Side::kValue, 2, 48).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("values: group_size is 32 but must divide "
                                 "head_dim 48")));
}

}  // namespace
}  // namespace kvmix
