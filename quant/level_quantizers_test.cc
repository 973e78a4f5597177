// The quantizers that are tables of levels with a scale: symmetric, fp8_e4m3,
// fp8_e5m2, mxfp4, nvfp4, turbo.

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/codec_test_rows.h"
#include "quant/float_formats.h"
#include "quant/normal_codebook.h"
#include "quant/nvfp4.pb.h"
#include "quant/symmetric.pb.h"
#include "quant/turbo.pb.h"

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

TEST(SymmetricTest, TheLargestElementIsKeptAndOthersAreWithinHalfAScale) {
  SymmetricOptions options;
  options.mutable_key()->set_axis(QuantFormat::PER_TOKEN);
  const auto quantizer = MakeQuantizer("symmetric", options);
  for (int bits = 2; bits <= 8; ++bits) {
    const auto codec = MakeCodec(*quantizer, Side::kKey, bits, kDim);
    const std::vector<float> x =
        NormalNumbers(int64_t{codec->block_tokens()} * kDim);
    const std::vector<float> x_hat = RoundTrip(*codec, Side::kKey, x);
    for (size_t g = 0; g < x.size(); g += 32) {
      size_t largest = g;
      for (size_t i = g; i < g + 32; ++i)
        if (std::fabs(x[i]) > std::fabs(x[largest])) largest = i;
      const double scale = std::fabs(x[largest]) / (1 << (bits - 1));
      EXPECT_NEAR(x_hat[largest], x[largest], 1e-3 * std::fabs(x[largest]));
      for (size_t i = g; i < g + 32; ++i) {
        // The code that has no opposite is on the largest element's side; on
        // the other side the last half step saturates.
        const bool saturates = x[i] * x[largest] < 0 &&
                               std::fabs(x[i]) > std::fabs(x[largest]) - scale;
        EXPECT_LE(std::fabs(x_hat[i] - x[i]),
                  (saturates ? 1.0 : 0.5) * scale * 1.01 + 1e-3);
      }
    }
    EXPECT_EQ(codec->effective_bits(kDim), bits + 0.5);
  }
}

// x_hat by the definition, element by element.
TEST(Fp8Test, EveryTokenIsScaledToTheLargestFloat) {
  for (const auto& [name, values] :
       {std::pair{"fp8_e4m3", E4M3Values()}, {"fp8_e5m2", E5M2Values()}}) {
    const float top = name[4 + 1] == '4' ? 448.0f : 57344.0f;
    const auto codec = MakeCodec(*MakeQuantizer(name), Side::kValue, 8, kDim);
    EXPECT_EQ(codec->effective_bits(kDim), 8 + 16.0 / kDim);
    const std::vector<float> x = NormalNumbers(32 * kDim);
    const std::vector<float> x_hat = RoundTrip(*codec, Side::kValue, x);
    for (int t = 0; t < 32; ++t) {
      float max = 0;
      for (int d = 0; d < kDim; ++d)
        max = std::max(max, std::fabs(x[t * kDim + d]));
      const float scale = ToFloat(ToHalf(max / top));
      for (int d = 0; d < kDim; ++d) {
        float best = values[0] * scale;
        for (const float v : values)
          if (std::isfinite(v) && std::fabs(v * scale - x[t * kDim + d]) <
                                      std::fabs(best - x[t * kDim + d]))
            best = v * scale;
        EXPECT_NEAR(std::fabs(x_hat[t * kDim + d] - x[t * kDim + d]),
                    std::fabs(best - x[t * kDim + d]), 1e-6)
            << name;
      }
    }
  }
}

TEST(Mxfp4Test, ScalesAreThePowersOfTwoOfTheSpecification) {
  const auto codec = MakeCodec(*MakeQuantizer("mxfp4"), Side::kKey, 4, kDim);
  EXPECT_EQ(codec->effective_bits(kDim), 4.25);
  // A block whose largest magnitude is 4 has scale 1: E2M1 as it is.
  std::vector<float> x(32 * kDim);
  const std::vector<float> in = {4, 0.2f, 0.25f, 0.3f, 0.75f, 1.25f, -2.5f, -5};
  const std::vector<float> out = {4, 0, 0, 0.5, 1, 1, -2, -4};
  for (size_t i = 0; i < in.size(); ++i) x[i] = in[i];
  x[7] = -3.5f;  // between 3 and 4: to the even code, 4
  for (size_t i = 0; i < in.size(); ++i) x[32 + i] = in[i] / 64;
  x[32 + 7] = -7.9f / 64;  // saturates at 6 of 4 to 8
  const std::vector<float> x_hat = RoundTrip(*codec, Side::kKey, x);
  for (size_t i = 0; i < in.size(); ++i) {
    EXPECT_EQ(x_hat[i], out[i]) << i;
    EXPECT_EQ(x_hat[32 + i], i == 7 ? -6.0f / 64 : out[i] / 64) << i;
  }
  EXPECT_EQ(x_hat[2 * kDim], 0);  // a block of zeros
}

TEST(Nvfp4Test, BlocksOf16WithAnE4M3Scale) {
  const auto codec = MakeCodec(*MakeQuantizer("nvfp4"), Side::kValue, 4, kDim);
  EXPECT_EQ(codec->effective_bits(kDim), 4.5);
  std::vector<float> x(32 * kDim);
  // max / 6 = 1.0625 lies half-way between the E4M3 1 and 1.125: ties to even.
  x[0] = 6.375f, x[1] = 0.9f;
  x[16] = 6 * 448, x[17] = -3 * 448;
  const std::vector<float> x_hat = RoundTrip(*codec, Side::kValue, x);
  EXPECT_EQ(x_hat[0], 6);
  EXPECT_EQ(x_hat[1], 1);
  EXPECT_EQ(x_hat[16], 6 * 448);
  EXPECT_EQ(x_hat[17], -3 * 448);
}

TEST(Nvfp4Test, TheGlobalScaleIsPartOfTheFormat) {
  Nvfp4Options options;
  options.set_global_scale(0.25f);
  const auto quantizer = MakeQuantizer("nvfp4", options);
  const auto codec = MakeCodec(*quantizer, Side::kValue, 4, kDim);
  std::vector<float> x(32 * kDim);
  x[0] = 6 * 448;  // more than 6 * 448 / 4 saturates
  EXPECT_EQ(RoundTrip(*codec, Side::kValue, x)[0], 6 * 448 / 4);
  ASSERT_OK_AND_ASSIGN(QuantFormat format,
                       quantizer->FormatFor(Side::kValue, 4, kDim));
  format.clear_options();
  EXPECT_THAT(MakeBlockCodec(format, Side::kValue, kDim).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options must be a kvmix.Nvfp4Options")));
  options.set_global_scale(-1);
  Component component;
  component.set_name("nvfp4");
  component.mutable_options()->PackFrom(options);
  EXPECT_THAT(
      Registry<Quantizer>::Get().Make(component, "quantizer").status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("global_scale")));
}

TEST(BlockFloatsTest, OtherGroupsAreRefused) {
  for (const char* name : {"mxfp4", "nvfp4"}) {
    ASSERT_OK_AND_ASSIGN(QuantFormat format,
                         MakeQuantizer(name)->FormatFor(Side::kKey, 4, kDim));
    format.set_group_size(64);
    EXPECT_THAT(MakeBlockCodec(format, Side::kKey, kDim).status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("group_size is 64 but must be")));
  }
}

// J. Max, "Quantizing for minimum distortion" (1960), table I, and Lloyd.
TEST(NormalCodebookTest, DistortionAndLevelsAsPublished) {
  const double distortion[] = {0.3634, 0.1175, 0.03454, 0.009497};
  for (int bits = 1; bits <= 4; ++bits) {
    const std::vector<float>& levels = NormalCodebook(bits);
    ASSERT_EQ(levels.size(), size_t{1} << bits);
    double sum = 0, mass = 0;
    for (double x = -8; x < 8; x += 1e-4) {
      double least = 1e9;
      for (const float level : levels)
        least = std::min(least, (x - level) * (x - level));
      sum += least * std::exp(-x * x / 2);
      mass += std::exp(-x * x / 2);
    }
    EXPECT_NEAR(sum / mass, distortion[bits - 1], 6e-5);
  }
  EXPECT_NEAR(NormalCodebook(1)[1], 0.7979, 1e-4);
  EXPECT_NEAR(NormalCodebook(2)[2], 0.4528, 1e-4);
  EXPECT_NEAR(NormalCodebook(2)[3], 1.510, 1e-3);
}

TEST(TurboTest, KeepsNormsAndHasTheDistortionOfItsCodebook) {
  const double distortion[] = {0.3634, 0.1175, 0.03454, 0.009497};
  const auto quantizer = MakeQuantizer("turbo");
  constexpr int kWide = 128;
  for (int bits = 1; bits <= 4; ++bits) {
    const auto codec = MakeCodec(*quantizer, Side::kKey, bits, kWide);
    EXPECT_EQ(codec->effective_bits(kWide), bits + 16.0 / kWide);
    const std::vector<float> x = NormalNumbers(int64_t{32} * kWide);
    const std::vector<float> x_hat = RoundTrip(*codec, Side::kKey, x);
    double error = 0, all = 0;
    for (int t = 0; t < 32; ++t) {
      double a = 0, b = 0;
      for (int d = 0; d < kWide; ++d) {
        const double v = x[t * kWide + d], w = x_hat[t * kWide + d];
        a += v * v, b += w * w, error += (v - w) * (v - w);
      }
      all += a;
      EXPECT_NEAR(std::sqrt(b), std::sqrt(a), 1e-3 * std::sqrt(a));
    }
    // Corrected norms cost some error: 1 - 2 c + 1 with c = sqrt(1 - D).
    const double expected = 2 - 2 * std::sqrt(1 - distortion[bits - 1]);
    EXPECT_NEAR(error / all, expected, 0.15 * expected);
  }
}

TEST(TurboTest, ATrellisTakesTheSameBytesAndMakesLessError) {
  TurboOptions options;
  options.set_trellis(true);
  const auto scalar = MakeQuantizer("turbo");
  const auto trellis = MakeQuantizer("turbo", options);
  const std::vector<float> x = NormalNumbers(32 * kDim);
  for (int bits = 1; bits <= 7; ++bits) {
    const auto codec = MakeCodec(*trellis, Side::kValue, bits, kDim);
    const auto other = MakeCodec(*scalar, Side::kValue, bits, kDim);
    EXPECT_EQ(codec->bytes().total(), other->bytes().total());
    EXPECT_LT(MeanSquaredError(x, RoundTrip(*codec, Side::kValue, x)),
              (bits == 1 ? 0.9 : 0.78) *
                  MeanSquaredError(x, RoundTrip(*other, Side::kValue, x)))
        << bits;
  }
  EXPECT_THAT(
      trellis->FormatFor(Side::kValue, 8, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bits is 8")));
  // A plan says it by itself.
  ASSERT_OK_AND_ASSIGN(QuantFormat format,
                       scalar->FormatFor(Side::kValue, 8, kDim));
  format.mutable_options()->PackFrom(options);
  EXPECT_THAT(
      MakeBlockCodec(format, Side::kValue, kDim).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bits is 8")));
}

}  // namespace
}  // namespace kvmix
