#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/residual_window.pb.h"
#include "kvmix/recency/window_trace.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<std::unique_ptr<RecencyPolicy>> Make(
    const ResidualWindowOptions& options = {}) {
  Component component;
  component.set_name("residual_window");
  component.mutable_options()->PackFrom(options);
  return Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
}

constexpr WindowState kKeys = {
    .side = Side::kKey, .bits = 2, .granularity = 32};
constexpr WindowState kValues = {
    .side = Side::kValue, .bits = 2, .granularity = 1};

TEST(ResidualWindowTest, KeysFillToTheWindowAndAllLeaveAtOnce) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  std::vector<int64_t> golden;
  for (int64_t n = 4; n < 200; ++n) golden.push_back(n % 64);
  EXPECT_EQ(WindowTrace(*policy, kKeys, 4100, 195), golden);
}

TEST(ResidualWindowTest, PrefillLeavesThePromptModuloTheWindow) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  for (int64_t tokens : {1, 63, 64, 65, 4096, 4101}) {
    EXPECT_EQ(WindowTrace(*policy, kKeys, tokens, 0).front(), tokens % 64);
  }
}

TEST(ResidualWindowTest, ValuesSlideOneByOne) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  std::vector<int64_t> golden;
  for (int64_t n = 60; n < 64; ++n) golden.push_back(n);
  golden.resize(100, 64);
  EXPECT_EQ(WindowTrace(*policy, kValues, 60, 99), golden);
  EXPECT_EQ(WindowTrace(*policy, kValues, 4096, 0).front(), 64);
}

TEST(ResidualWindowTest, ValuesOfAGroupedFormatLeaveByTheGroup) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  const WindowState values = {
      .side = Side::kValue, .bits = 2, .granularity = 32};
  std::vector<int64_t> golden;
  for (int i = 0; i < 100; ++i) golden.push_back(64 + i % 32);
  EXPECT_EQ(WindowTrace(*policy, values, 64, 99), golden);
}

TEST(ResidualWindowTest, WindowMustBeAMultipleOfTheKeysGroup) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  EXPECT_OK(policy->Validate(kKeys));
  EXPECT_OK(policy->Validate(kValues));
  EXPECT_THAT(
      policy->Validate({.side = Side::kKey, .bits = 3, .granularity = 11}),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("recency_policy.options.tokens is 64 but must be a "
                         "multiple of 11, the tokens that 3-bit keys are "
                         "quantized together; use 55 or 66")));
  EXPECT_THAT(
      policy->Validate({.side = Side::kKey, .bits = 2, .granularity = 128}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("; use 128")));
}

TEST(ResidualWindowTest, OptionsOutOfRangeAreRefused) {
  ResidualWindowOptions options;
  options.set_tokens(-1);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.tokens is -1 but must be positive")));
  options.set_tokens(128);
  options.set_sink_tokens(-1);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.sink_tokens is -1")));
}

TEST(ResidualWindowTest, QuantizesAfterAttention) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  EXPECT_EQ(policy->flush_order(), FlushOrder::kAfterAttention);
  EXPECT_EQ(policy->sink_tokens(), 0);
}

TEST(NoWindowTest, OnlyAnIncompleteGroupStays) {
  Component component;
  component.set_name("none");
  ASSERT_OK_AND_ASSIGN(const auto policy, Registry<RecencyPolicy>::Get().Make(
                                              component, "recency_policy"));
  std::vector<int64_t> golden;
  for (int64_t n = 0; n < 100; ++n) golden.push_back(n % 32);
  EXPECT_EQ(WindowTrace(*policy, kKeys, 4096, 99), golden);
  EXPECT_EQ(WindowTrace(*policy, kValues, 4096, 99),
            std::vector<int64_t>(100, 0));
}

}  // namespace
}  // namespace kvmix
