#include "kvmix/base/status_macros.h"

#include <memory>
#include <string>

#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<int> Half(int x) {
  if (x % 2 != 0) return absl::InvalidArgumentError("odd");
  return x / 2;
}

absl::StatusOr<int> Quarter(int x) {
  KVMIX_ASSIGN_OR_RETURN(const int half, Half(x));
  KVMIX_ASSIGN_OR_RETURN(int quarter, Half(half));
  return quarter;
}

absl::Status CountedReturn(const absl::Status& status, int& evaluations,
                           bool& went_on) {
  KVMIX_RETURN_IF_ERROR((++evaluations, status));
  went_on = true;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, AssignOrReturnTakesTheValueOrHandsOnTheError) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(3).status(), absl::InvalidArgumentError("odd"));
  EXPECT_EQ(Quarter(6).status(), absl::InvalidArgumentError("odd"));
}

TEST(StatusMacrosTest, AssignOrReturnMoves) {
  const auto make = []() -> absl::StatusOr<std::unique_ptr<int>> {
    return std::make_unique<int>(5);
  };
  const auto take = [&]() -> absl::StatusOr<int> {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<int> p, make());
    return *p;
  };
  EXPECT_EQ(*take(), 5);
}

TEST(StatusMacrosTest, ReturnIfErrorEvaluatesOnce) {
  int evaluations = 0;
  bool went_on = false;
  EXPECT_OK(CountedReturn(absl::OkStatus(), evaluations, went_on));
  EXPECT_TRUE(went_on);
  EXPECT_EQ(evaluations, 1);
  went_on = false;
  EXPECT_EQ(CountedReturn(absl::DataLossError("x"), evaluations, went_on),
            absl::DataLossError("x"));
  EXPECT_FALSE(went_on);
  EXPECT_EQ(evaluations, 2);
}

TEST(StatusMacrosTest, AddContextPutsThePlaceBeforeTheMessage) {
  EXPECT_EQ(AddContext(absl::NotFoundError("no scale"), "layer 7 keys"),
            absl::NotFoundError("layer 7 keys: no scale"));
  EXPECT_OK(AddContext(absl::OkStatus(), "layer 7 keys"));
}

TEST(StatusMatchersTest, FailWhereTheStatusDiffers) {
  const absl::Status status = absl::NotFoundError("no such file");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound, HasSubstr("such")));
  EXPECT_THAT(absl::StatusOr<int>(status),
              StatusIs(absl::StatusCode::kNotFound, "no such file"));
  EXPECT_NONFATAL_FAILURE(EXPECT_OK(absl::NotFoundError("no such file")),
                          "no such file");
  EXPECT_NONFATAL_FAILURE(
      EXPECT_THAT(absl::NotFoundError("x"),
                  StatusIs(absl::StatusCode::kInternal, "x")),
      "given code");
  EXPECT_NONFATAL_FAILURE(
      EXPECT_THAT(absl::NotFoundError("x"),
                  StatusIs(absl::StatusCode::kNotFound, "y")),
      "NOT_FOUND: x");
}

}  // namespace
}  // namespace kvmix
