#include "kvmix/allocation/gaussian_distortion.h"

#include <cmath>

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

QuantFormat PerToken(int bits) {
  QuantFormat format;
  format.set_bits(bits);
  if (bits == 16) return format;
  format.set_quantizer("group_affine");
  format.set_group_size(32);
  format.set_axis(QuantFormat::PER_TOKEN);
  return format;
}

// The range of 32 normal numbers is 4.1 in the mean and 0.7 its standard
// deviation (Tippett, Biometrika 17, 1925); rounding to 2^b levels over it has
// an error of range^2 / (2^b - 1)^2 / 12.
TEST(GaussianDistortionTest, IsThatOfRoundingOverTheRangeOfAGroup) {
  for (int bits : {4, 6, 8}) {
    ASSERT_OK_AND_ASSIGN(const double distortion,
                         GaussianDistortion(PerToken(bits), Side::kValue, 64));
    const double steps = std::pow(2, bits) - 1;
    const double expected = (4.1 * 4.1 + 0.7 * 0.7) / (steps * steps) / 12;
    EXPECT_NEAR(distortion / expected, 1, 0.08) << bits;
  }
}

TEST(GaussianDistortionTest, FullPrecisionLosesNothing) {
  ASSERT_OK_AND_ASSIGN(const double distortion,
                       GaussianDistortion(PerToken(16), Side::kKey, 64));
  EXPECT_EQ(distortion, 0);
}

}  // namespace
}  // namespace kvmix
