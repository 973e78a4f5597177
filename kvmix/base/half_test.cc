#include "kvmix/base/half.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <eigen3/Eigen/Core>
#include <limits>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Value of a finite half by its definition, in double.
double ValueOf(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude = exponent == 0
                               ? std::ldexp(fraction, -24)
                               : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

bool IsNan(uint16_t bits) { return (bits & 0x7fff) > 0x7c00; }

TEST(HalfTest, EveryHalfHasItsValueAndComesBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float x = ToFloat(Half{bits});
    if (IsNan(bits)) {
      ASSERT_TRUE(std::isnan(x)) << i;
      ASSERT_TRUE(IsNan(ToHalf(x).bits)) << i;
      continue;
    }
    if ((bits & 0x7fff) == 0x7c00) {
      ASSERT_EQ(x, bits & 0x8000 ? -kInfinity : kInfinity);
    } else {
      ASSERT_EQ(x, ValueOf(bits)) << i;
    }
    ASSERT_EQ(std::signbit(x), (bits & 0x8000) != 0) << i;
    ASSERT_EQ(ToHalf(x).bits, bits) << i;
  }
}

// Between neighbours a < b: their mean goes to the even one, a float less goes
// to a, a float more to b. 65504 and infinity are neighbours, as if infinity
// were 65536.
TEST(HalfTest, RoundsToNearestTiesToEven) {
  for (uint16_t a = 0; a < 0x7c00; ++a) {
    const uint16_t b = a + 1;
    const double upper = b == 0x7c00 ? 65536.0 : ValueOf(b);
    const auto middle = static_cast<float>((ValueOf(a) + upper) / 2);
    const uint16_t even = a % 2 == 0 ? a : b;
    ASSERT_EQ(ToHalf(middle).bits, even) << a;
    ASSERT_EQ(ToHalf(std::nextafter(middle, 0.0f)).bits, a) << a;
    ASSERT_EQ(ToHalf(std::nextafter(middle, kInfinity)).bits, b) << a;
    ASSERT_EQ(ToHalf(-middle).bits, even | 0x8000) << a;
  }
}

// Floats over the whole range of bit patterns, against Eigen.
TEST(HalfTest, AgreesWithEigen) {
  for (uint64_t i = 0; i < uint64_t{1} << 32; i += 997) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(i));
    if (std::isnan(x)) {
      ASSERT_TRUE(IsNan(ToHalf(x).bits)) << i;
    } else {
      ASSERT_EQ(ToHalf(x).bits,
                std::bit_cast<uint16_t>(static_cast<Eigen::half>(x)))
          << i;
    }
  }
}

TEST(HalfTest, WhatIsTooLargeIsInfinite) {
  EXPECT_EQ(ToHalf(65519.996f).bits, 0x7bff);
  EXPECT_EQ(ToHalf(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToHalf(std::numeric_limits<float>::max()).bits, 0x7c00);
  EXPECT_EQ(ToHalf(-kInfinity).bits, 0xfc00);
}

TEST(BFloat16Test, EveryValueComesBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const float x = ToFloat(BFloat16{static_cast<uint16_t>(i)});
    ASSERT_EQ(std::bit_cast<uint32_t>(x), i << 16);
    const uint16_t back = ToBFloat16(x).bits;
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(ToFloat(BFloat16{back}))) << i;
    } else {
      ASSERT_EQ(back, i);
    }
  }
}

TEST(BFloat16Test, RoundsToNearestTiesToEven) {
  for (uint32_t a = 0; a < 0x7f80; ++a) {
    const uint32_t even = a + a % 2;
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(a << 16 | 0x8000)).bits, even);
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(a << 16 | 0x7fff)).bits, a);
    ASSERT_EQ(ToBFloat16(std::bit_cast<float>(a << 16 | 0x8001)).bits, a + 1);
  }
}

TEST(BFloat16Test, ANanNeverBecomesInfinite) {
  // All of the payload lies in the bits that are cut off.
  EXPECT_TRUE(
      std::isnan(ToFloat(ToBFloat16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace kvmix
