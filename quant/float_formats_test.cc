#include "quant/float_formats.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/half.h"
#include "quant/level_codec.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;

TEST(FloatFormatsTest, E5M2IsTheHighByteOfHalf) {
  const std::vector<float> values = E5M2Values();
  ASSERT_EQ(values.size(), 256u);
  for (uint32_t code = 0; code < 256; ++code) {
    const float half = ToFloat(Half{static_cast<uint16_t>(code << 8)});
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(values[code])) << code;
    } else {
      EXPECT_EQ(values[code], half) << code;
    }
  }
}

// Its fields fit those of half, whose bias is larger by 8.
TEST(FloatFormatsTest, E4M3IsHalfWithAnotherBias) {
  const std::vector<float> values = E4M3Values();
  ASSERT_EQ(values.size(), 256u);
  for (uint32_t code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(values[code]));
      continue;
    }
    const uint32_t half = (code & 0x80) << 8 | (code & 0x7f) << 7;
    EXPECT_EQ(values[code], 256 * ToFloat(Half{static_cast<uint16_t>(half)}));
  }
  // As the specification lists them.
  EXPECT_EQ(values[0x7e], 448);
  EXPECT_EQ(values[0x38], 1);
  EXPECT_EQ(values[0x08], std::ldexp(1.0f, -6));
  EXPECT_EQ(values[0x01], std::ldexp(1.0f, -9));
}

TEST(FloatFormatsTest, E2M1AsTheSpecificationListsIt) {
  EXPECT_THAT(E2M1Values(), ElementsAre(0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0f, -0.5,
                                        -1, -1.5, -2, -3, -4, -6));
}

TEST(FloatFormatsTest, E8M0IsAPowerOfTwo) {
  EXPECT_EQ(E8M0Value(127), 1);
  EXPECT_EQ(E8M0Value(0), std::ldexp(1.0f, -127));
  EXPECT_EQ(E8M0Value(254), std::ldexp(1.0f, 127));
  EXPECT_TRUE(std::isnan(E8M0Value(255)));
}

TEST(LevelTableTest, EveryCodeIsTheNearestToItsOwnNumber) {
  for (const auto& values : {E4M3Values(), E5M2Values(), E2M1Values()}) {
    const LevelTable table(values);
    for (uint32_t code = 0; code < values.size(); ++code) {
      if (!std::isfinite(values[code])) continue;
      const bool minus_zero = values[code] == 0 && code != 0;
      EXPECT_EQ(table.Nearest(values[code]), minus_zero ? 0 : code);
    }
  }
}

TEST(LevelTableTest, RoundsToTheNearestAndTiesToTheEvenCode) {
  const std::vector<float> values = E4M3Values();
  const LevelTable table(values);
  for (uint32_t code = 0; code + 1 < 0x7f; ++code) {
    const float low = values[code], high = values[code + 1];
    const float middle = (low + high) / 2;
    EXPECT_EQ(table.Nearest(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(table.Nearest(std::nextafter(middle, low)), code);
    EXPECT_EQ(table.Nearest(std::nextafter(middle, high)), code + 1);
  }
  EXPECT_EQ(values[table.Nearest(1e30f)], 448);
  EXPECT_EQ(values[table.Nearest(-INFINITY)], -448);
  EXPECT_EQ(values[table.Nearest(NAN)], 0);
}

}  // namespace
}  // namespace kvmix
