#include "kvmix/base/check.h"

#include "gtest/gtest.h"

namespace kvmix {
namespace {

TEST(CheckTest, ATrueConditionCostsNothing) {
  int evaluated = 0;
  KVMIX_CHECK(true) << "not evaluated " << ++evaluated;
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckTest, NestsInAnIfWithoutBraces) {
  bool took_else = false;
  if (false)
    KVMIX_CHECK(false);
  else
    took_else = true;
  EXPECT_TRUE(took_else);
}

TEST(CheckDeathTest, AFalseConditionStopsTheProgramWithPlaceAndReason) {
  EXPECT_DEATH(KVMIX_CHECK(1 + 1 == 3) << "sum of " << 2,
               "check_test.cc:.*check failed: 1 \\+ 1 == 3 sum of 2");
}

}  // namespace
}  // namespace kvmix
