#include "kvmix/base/progress_bar.h"

#include <algorithm>
#include <memory>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ProgressBarTest : public ::testing::Test {
 protected:
  ProgressBar::Options Options(bool terminal) {
    return {.out = &out_, .terminal = terminal, .now = [this] { return now_; }};
  }
  // What was written since the last call.
  std::string Written() {
    const std::string text = out_.str();
    out_.str("");
    return text;
  }

  std::ostringstream out_;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(ProgressBarTest, ShowsShareCountAndRemainingTime) {
  ProgressBar bar("KVmix", 30, "windows", Options(/*terminal=*/true));
  Written();
  now_ += absl::Seconds(70);
  bar.Advance(15);
  EXPECT_EQ(Written(),
            "\r\x1b[KKVmix  [============            ]  50 %  15/30 windows  "
            "eta 1m10s");
}

TEST_F(ProgressBarTest, WhatWasFinishedBeforeSaysNothingOfTheTime) {
  ProgressBar bar("a", 30, "windows", Options(/*terminal=*/true));
  now_ += absl::Milliseconds(200);
  bar.AdvanceFinished(20);
  EXPECT_THAT(Written(), HasSubstr("20/30 windows  eta ?"));
  now_ += absl::Milliseconds(9800);
  bar.Advance(5);
  EXPECT_THAT(Written(), HasSubstr("25/30 windows  eta 10s"));
}

TEST_F(ProgressBarTest, ATerminalIsRedrawnAtMostTenTimesASecond) {
  ProgressBar bar("a", 1000, "steps", Options(/*terminal=*/true));
  Written();
  for (int i = 0; i < 500; ++i) {
    now_ += absl::Milliseconds(1);
    bar.Advance();
  }
  const std::string text = Written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 5);
}

TEST_F(ProgressBarTest, ALogGetsALineForEveryTenth) {
  {
    ProgressBar bar("a", 1000, "steps", Options(/*terminal=*/false));
    for (int i = 0; i < 1000; ++i) bar.Advance();
  }
  const std::string text = Written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 0);
  EXPECT_THAT(text, StartsWith("a  [==                      ]  10 %"));
}

TEST_F(ProgressBarTest, TheEndShowsTheTimeTakenAndEndsTheLine) {
  {
    ProgressBar bar("a", 2, "steps", Options(/*terminal=*/true));
    now_ += absl::Seconds(5);
    bar.Advance(7);  // more than there are
  }
  EXPECT_THAT(Written(), EndsWith("100 %  2/2 steps  took 5s\n"));
}

TEST_F(ProgressBarTest, NothingDoneOrNothingToDoHasNoEstimate) {
  auto bar = std::make_unique<ProgressBar>("a", 0, "steps",
                                           Options(/*terminal=*/true));
  EXPECT_THAT(Written(), HasSubstr("eta ?"));
}

TEST(FormatDurationTest, HasTwoUnitsAtMost) {
  EXPECT_EQ(ProgressBar::FormatDuration(absl::ZeroDuration()), "0s");
  EXPECT_EQ(ProgressBar::FormatDuration(absl::Seconds(8.4)), "8s");
  EXPECT_EQ(ProgressBar::FormatDuration(absl::Seconds(59.6)), "1m00s");
  EXPECT_EQ(ProgressBar::FormatDuration(absl::Seconds(72)), "1m12s");
  EXPECT_EQ(ProgressBar::FormatDuration(absl::Minutes(185)), "3h05m");
  EXPECT_EQ(ProgressBar::FormatDuration(-absl::Seconds(1)), "?");
  EXPECT_EQ(ProgressBar::FormatDuration(absl::InfiniteDuration()), "?");
}

}  // namespace
}  // namespace kvmix
