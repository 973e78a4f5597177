#include "kvmix/base/validators.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using testing::StatusIs;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

auto Refused(const char* message) {
  return StatusIs(absl::StatusCode::kInvalidArgument, message);
}

TEST(ValidatorsTest, Positive) {
  EXPECT_OK(ValidateIsPositive(1, "x"));
  EXPECT_OK(ValidateIsPositive(1e-300, "x"));
  EXPECT_OK(ValidateIsPositive(std::numeric_limits<int64_t>::max(), "x"));
  EXPECT_THAT(ValidateIsPositive(0, "cache.page_size"),
              Refused("cache.page_size is 0 but must be positive and finite"));
  EXPECT_FALSE(ValidateIsPositive(-1, "x").ok());
  EXPECT_FALSE(ValidateIsPositive(kNan, "x").ok());
  EXPECT_FALSE(ValidateIsPositive(kInfinity, "x").ok());
}

TEST(ValidatorsTest, NonNegative) {
  EXPECT_OK(ValidateIsNonNegative(0, "x"));
  EXPECT_OK(ValidateIsNonNegative(-0.0, "x"));
  EXPECT_THAT(ValidateIsNonNegative(-0.5, "rate"),
              Refused("rate is -0.5 but must be finite and at least 0"));
  EXPECT_FALSE(ValidateIsNonNegative(kNan, "x").ok());
  EXPECT_FALSE(ValidateIsNonNegative(kInfinity, "x").ok());
}

TEST(ValidatorsTest, RangeIncludesBothEnds) {
  EXPECT_OK(ValidateIsInRange(1, 1, 8, "bits"));
  EXPECT_OK(ValidateIsInRange(8, 1, 8, "bits"));
  EXPECT_THAT(ValidateIsInRange(9, 1, 8, "bits"),
              Refused("bits is 9 but must be in [1, 8]"));
  EXPECT_THAT(ValidateIsInRange(0, 1, 8, "bits"),
              Refused("bits is 0 but must be in [1, 8]"));
  EXPECT_THAT(ValidateIsInRange(kNan, 0.0, 1.0, "ratio"),
              Refused("ratio is nan but must be in [0, 1]"));
}

TEST(ValidatorsTest, Divides) {
  EXPECT_OK(ValidateDivides(32, 128, "group_size", "head_dim"));
  EXPECT_THAT(ValidateDivides(48, 128, "group_size", "head_dim"),
              Refused("group_size is 48 but must divide head_dim 128"));
  EXPECT_FALSE(ValidateDivides(0, 128, "group_size", "head_dim").ok());
  EXPECT_FALSE(ValidateDivides(-32, 128, "group_size", "head_dim").ok());
}

}  // namespace
}  // namespace kvmix
