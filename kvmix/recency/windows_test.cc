// fraction_of_context, window_with_sinks and age_tiers.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/recency/age_tiers.pb.h"
#include "kvmix/recency/fraction_of_context.pb.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/window_trace.h"
#include "kvmix/recency/window_with_sinks.pb.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

template <typename Options>
absl::StatusOr<std::unique_ptr<RecencyPolicy>> Make(const char* name,
                                                    const Options& options) {
  Component component;
  component.set_name(name);
  component.mutable_options()->PackFrom(options);
  return Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
}

// A quarter of 1000 tokens stays, whatever of them is packed.
TEST(FractionOfContextTest, TheWindowIsAShareOfAllTokens) {
  FractionOfContextOptions options;
  options.set_fraction(0.25);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make("fraction_of_context", options));
  WindowState state = {.granularity = 32, .window_tokens = 1000};
  EXPECT_EQ(policy->TokensToQuantize(state), 736);  // 750 in 32s
  state.window_tokens = 1000 - 736;
  state.packed_tokens = 736;
  EXPECT_EQ(policy->TokensToQuantize(state), 0);
  state.window_tokens += 24;  // 256 of 1024 stay, 288 - 256 leave
  EXPECT_EQ(policy->TokensToQuantize(state), 32);
}

TEST(WindowWithSinksTest, KeysAndValuesSlide) {
  WindowWithSinksOptions options;
  options.set_tokens(8);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make("window_with_sinks", options));
  EXPECT_EQ(policy->sink_tokens(), 5);
  EXPECT_THAT(
      WindowTrace(*policy, {.side = Side::kKey, .granularity = 4}, 21, 5),
      ElementsAre(9, 10, 11, 8, 9, 10));
  options.set_sink_tokens(0);
  ASSERT_OK_AND_ASSIGN(const auto no_sinks, Make("window_with_sinks", options));
  EXPECT_EQ(no_sinks->sink_tokens(), 0);
  EXPECT_THAT(WindowTrace(*policy, {.side = Side::kValue}, 21, 3),
              ElementsAre(8, 8, 8, 8));
}

TEST(AgeTiersTest, DefaultIs8BitsThen4AndNoSinks) {
  AgeTiersOptions options;
  ASSERT_OK_AND_ASSIGN(const auto policy, Make("age_tiers", options));
  EXPECT_EQ(policy->sink_tokens(), 0);
  ASSERT_OK_AND_ASSIGN(const auto tiers, policy->Tiers(Side::kValue, 64));
  std::vector<std::pair<int, int64_t>> bits_and_tokens;
  for (const AgeTier& tier : tiers)
    bits_and_tokens.push_back({tier.format.bits(), tier.tokens});
  EXPECT_THAT(bits_and_tokens,
              ElementsAre(std::pair(8, 128), std::pair(4, 512)));
  EXPECT_THAT(WindowTrace(*policy, {.side = Side::kValue}, 100, 2),
              ElementsAre(64, 64, 64));
  options.set_tokens(0);
  ASSERT_OK_AND_ASSIGN(const auto no_window, Make("age_tiers", options));
  EXPECT_THAT(WindowTrace(*no_window, {.side = Side::kValue}, 100, 2),
              ElementsAre(0, 0, 0));
  options.set_sink_tokens(3);
  ASSERT_OK_AND_ASSIGN(const auto sinks, Make("age_tiers", options));
  EXPECT_EQ(sinks->sink_tokens(), 3);
}

TEST(AgeTiersTest, FormatsAreThoseOfTheQuantizer) {
  AgeTiersOptions options;
  AgeTiersOptions::Tier& tier = *options.add_tier();
  tier.set_bits(6);
  tier.set_tokens(96);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make("age_tiers", options));
  ASSERT_OK_AND_ASSIGN(const auto tiers, policy->Tiers(Side::kKey, 64));
  ASSERT_EQ(tiers.size(), 1u);
  EXPECT_EQ(tiers[0].tokens, 96);
  EXPECT_EQ(tiers[0].format.ShortDebugString(),
            "quantizer: \"group_affine\" bits: 6 group_size: 32 axis: "
            "PER_CHANNEL");
  tier.set_sides(AgeTiersOptions::KEYS);
  ASSERT_OK_AND_ASSIGN(const auto keys, Make("age_tiers", options));
  EXPECT_EQ(keys->Tiers(Side::kKey, 64)->size(), 1u);
  EXPECT_TRUE(keys->Tiers(Side::kValue, 64)->empty());
  tier.set_sides(AgeTiersOptions::VALUES);
  ASSERT_OK_AND_ASSIGN(const auto values, Make("age_tiers", options));
  EXPECT_TRUE(values->Tiers(Side::kKey, 64)->empty());
  EXPECT_EQ(values->Tiers(Side::kValue, 64)->size(), 1u);
  tier.set_bits(9);
  EXPECT_THAT(Make("age_tiers", options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.tier[0].bits is 9")));
}

}  // namespace
}  // namespace kvmix
