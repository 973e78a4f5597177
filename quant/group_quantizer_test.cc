#include "quant/group_quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/instruction_sets.h"
#include "kvmix/base/random.h"
#include "quant/group_quantizer_reference.h"

namespace kvmix {
namespace {

using testing::QuantizeGroup;
using testing::ReferenceGroup;

struct Packed {
  std::vector<uint32_t> words;
  std::vector<Half> scales, zeros;
  std::vector<float> x_hat;
};

Packed Quantize(const GroupFormat& format, const std::vector<float>& x) {
  const int n = static_cast<int>(x.size()) / format.size;
  Packed p{std::vector<uint32_t>(n * format.words() + 2),  // room to over-read
           std::vector<Half>(n), std::vector<Half>(n),
           std::vector<float>(x.size())};
  EncodeGroups(format, x.data(), n, p.words.data(), p.scales.data(),
               p.zeros.data());
  DecodeGroups(format, p.words.data(), p.scales.data(), p.zeros.data(), n,
               p.x_hat.data(), format.size);
  return p;
}

std::vector<float> Normals(int64_t n, uint64_t stream) {
  CounterRandom random(3, stream);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

constexpr GroupFormat kEleven{
    .bits = 3, .size = 11, .packing = QuantFormat::KVMIX_3BIT_11};
constexpr GroupFormat kElevenRescaled{
    .bits = 3, .size = 11, .packing = QuantFormat::KVMIX_3BIT_11_RESCALED};

std::vector<GroupFormat> Formats() {
  std::vector<GroupFormat> formats = {kEleven, kElevenRescaled};
  for (int bits = 1; bits <= 8; ++bits)
    for (int size : {1, 5, 8, 16, 27, 32, 64, 128, 4096})
      formats.push_back({.bits = bits, .size = size});
  return formats;
}

std::string Describe(const GroupFormat& f) {
  return std::to_string(f.bits) + " bits, groups of " + std::to_string(f.size) +
         ", " + QuantFormat::Packing_Name(f.packing);
}

TEST(GroupQuantizerTest, TwoBitGroupWorkedByHand) {
  // zero -1, scale (2 - -1) / 3 = 1; 0.5 is at 1.5 and 2.5 steps' midpoint
  // between codes 1 and 2: ties to even.
  const Packed p = Quantize({.bits = 2, .size = 5}, {-1, 0, 0.5, 2, -0.5});
  EXPECT_EQ(p.words[0], 0u | 1u << 2 | 2u << 4 | 3u << 6 | 0u << 8);
  EXPECT_EQ(ToFloat(p.scales[0]), 1.0f);
  EXPECT_EQ(ToFloat(p.zeros[0]), -1.0f);
  EXPECT_EQ(p.x_hat, (std::vector<float>{-1, 0, 1, 2, -1}));
}

TEST(GroupQuantizerTest, ReleasedThreeBitWordSaturatesItsEleventhCode) {
  const Packed p = Quantize(kEleven, {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 7});
  EXPECT_EQ(p.words[0], 3u << 30 | 01076543210u);
  EXPECT_EQ(p.x_hat, (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 3}));
}

TEST(GroupQuantizerTest, RescaledThreeBitWordReachesTheMaximum) {
  const Packed p = Quantize(kElevenRescaled, {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 7});
  EXPECT_EQ(p.words[0], 3u << 30 | 01076543210u);
  EXPECT_EQ(p.x_hat, (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 7}));
  // 2 / (7/3) is nearest to 1.
  const Packed q = Quantize(kElevenRescaled, {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2});
  EXPECT_EQ(q.words[0], 1u << 30 | 01076543210u);
  EXPECT_FLOAT_EQ(q.x_hat[10], 7.0f / 3.0f);
}

TEST(GroupQuantizerTest, ConstantGroupBecomesItsZeroPoint) {
  for (const GroupFormat& format : Formats()) {
    const Packed p = Quantize(format, std::vector<float>(format.size, 2.5f));
    EXPECT_EQ(p.scales[0].bits, 0);
    for (int i = 0; i < format.words(); ++i) EXPECT_EQ(p.words[i], 0u);
    EXPECT_EQ(p.x_hat, std::vector<float>(format.size, 2.5f));
  }
}

TEST(GroupQuantizerTest, MatchesReference) {
  for (const GroupFormat& format : Formats()) {
    SCOPED_TRACE(Describe(format));
    const int n = format.size > 1000 ? 2 : 150;
    const std::vector<float> x = Normals(int64_t{n} * format.size, 0);
    const Packed p = Quantize(format, x);
    for (int g = 0; g < n; ++g) {
      const std::vector<double> group(x.begin() + g * format.size,
                                      x.begin() + (g + 1) * format.size);
      const ReferenceGroup expected =
          format.packing == QuantFormat::DENSE
              ? QuantizeGroup(group, format.bits)
              : QuantizeGroup(
                    group, 3, 3,
                    format.packing == QuantFormat::KVMIX_3BIT_11 ? 1 : 7 / 3.0);
      ASSERT_EQ(ToFloat(p.zeros[g]), expected.zero);
      // float may round the range to the other side of a tie of halves
      ASSERT_NEAR(ToFloat(p.scales[g]), expected.scale,
                  expected.scale * 0x1p-10);
      if (ToFloat(p.scales[g]) != expected.scale) continue;
      for (int i = 0; i < format.size; ++i) {
        const double past_tie = expected.steps[i] + 0.5;
        if (std::fabs(past_tie - std::nearbyint(past_tie)) < 1e-4) continue;
        ASSERT_EQ(
            UnpackCode(p.words.data() + g * format.words(), format.words(),
                       format.bits, i) &
                (format.packing != QuantFormat::DENSE && i == 10 ? 3 : 255),
            expected.codes[i])
            << "element " << i;
        ASSERT_NEAR(p.x_hat[g * format.size + i], expected.x_hat[i],
                    std::fabs(expected.x_hat[i]) * 0x1p-22 + 1e-7);
      }
    }
  }
}

TEST(GroupQuantizerTest, ErrorIsAtMostHalfAScaleInsideTheRange) {
  for (const GroupFormat& format : Formats()) {
    if (format.packing != QuantFormat::DENSE) continue;
    SCOPED_TRACE(Describe(format));
    const int n = format.size > 1000 ? 2 : 50;
    const std::vector<float> x = Normals(int64_t{n} * format.size, 1);
    const Packed p = Quantize(format, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double scale = ToFloat(p.scales[i / format.size]);
      const double zero = ToFloat(p.zeros[i / format.size]);
      const double top = zero + ((1 << format.bits) - 1) * scale;
      if (x[i] < zero || x[i] > top) {  // by the rounding to half alone
        ASSERT_NEAR(x[i], x[i] < zero ? zero : top,
                    std::fabs(zero) * 0x1p-11 + (top - zero) * 0x1p-10);
        continue;
      }
      ASSERT_LE(std::fabs(static_cast<double>(x[i]) - p.x_hat[i]),
                scale * 0.5 * (1 + 1e-5) + 1e-7);
    }
  }
}

// Mean squared error on N(0, 1), and bits per element with a half scale and a
// half zero point per group.
TEST(GroupQuantizerTest, GaussianErrorIsThatOfTheMethod) {
  struct Row {
    GroupFormat format;
    double mse, effective_bits;
  };
  const Row rows[] = {
      {kEleven, 0.080, 5.82},
      {kElevenRescaled, 0.021, 5.82},
      {{.bits = 3, .size = 32}, 0.028, 4.0},
      {{.bits = 2, .size = 32}, 0.154, 3.0},
      {{.bits = 4, .size = 32}, 0.0061, 5.0},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(Describe(row.format));
    const int n = 20000;
    const std::vector<float> x = Normals(int64_t{n} * row.format.size, 2);
    const Packed p = Quantize(row.format, x);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double e = static_cast<double>(x[i]) - p.x_hat[i];
      sum += e * e;
    }
    // Two or three digits are known, the sample has at least 220,000 numbers.
    EXPECT_NEAR(sum / x.size(), row.mse, row.mse * 0.025);
    EXPECT_NEAR(32.0 * (row.format.words() + 1) / row.format.size,
                row.effective_bits, 0.005);
  }
}

TEST(GroupQuantizerTest, NumbersBeyondHalfSaturate) {
  const float inf = std::numeric_limits<float>::infinity();
  const Packed p = Quantize({.bits = 2, .size = 4}, {-inf, -3e38f, inf, 1e30f});
  EXPECT_EQ(ToFloat(p.zeros[0]), -65504.0f);
  // (2 * 65504) / 3 = 43669.3, as half 43680: the top code is at 65536.
  EXPECT_EQ(p.x_hat, (std::vector<float>{-65504, -65504, 65536, 65536}));
}

TEST(GroupQuantizerTest, AScaleBeyondHalfSaturates) {
  const Packed p = Quantize({.bits = 1, .size = 2}, {-65504, 65504});
  EXPECT_EQ(ToFloat(p.scales[0]), 65504.0f);
  EXPECT_EQ(p.x_hat, (std::vector<float>{-65504, 0}));
}

TEST(GroupQuantizerTest, NanBecomesZeroAndLeavesTheRestAlone) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int at : {0, 4, 9}) {
    std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    x[at] = nan;
    const Packed p = Quantize({.bits = 8, .size = 10}, x);
    x[at] = 0;
    const Packed q = Quantize({.bits = 8, .size = 10}, x);
    EXPECT_EQ(p.words, q.words);
    EXPECT_EQ(p.x_hat, q.x_hat);
  }
}

TEST(GroupQuantizerTest, ARangeBelowTheSmallestHalfIsAConstantGroup) {
  const Packed p = Quantize({.bits = 4, .size = 2}, {0.0f, 1e-9f});
  EXPECT_EQ(p.scales[0].bits, 0);
  EXPECT_EQ(p.x_hat, (std::vector<float>{0, 0}));
}

TEST(GroupQuantizerTest, EveryInstructionSetGivesTheSameBits) {
  for (const GroupFormat& format : Formats()) {
    SCOPED_TRACE(Describe(format));
    const std::vector<float> x = Normals(int64_t{3} * format.size, 4);
    const Packed expected = Quantize(format, x);
    for (int64_t target : testing::InstructionSets()) {
      testing::ForceInstructionSet(target);
      const Packed p = Quantize(format, x);
      EXPECT_EQ(p.words, expected.words) << hwy::TargetName(target);
      EXPECT_EQ(std::memcmp(p.x_hat.data(), expected.x_hat.data(),
                            x.size() * sizeof(float)),
                0)
          << hwy::TargetName(target);
    }
    testing::ForceInstructionSet(0);
  }
}

}  // namespace
}  // namespace kvmix
