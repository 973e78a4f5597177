// The laws that every recency policy keeps, checked for all that are linked.
#include <cstdint>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

class RecencyPolicyConformanceTest
    : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { component_.set_name(GetParam()); }

  absl::StatusOr<std::unique_ptr<RecencyPolicy>> Make() const {
    return Registry<RecencyPolicy>::Get().Make(component_, "recency_policy");
  }

  Component component_;
};

// Formats that KVmix and KIVI use.
WindowState RandomStream(CounterRandom& random) {
  static constexpr int kGranularities[] = {1, 8, 32, 64};
  return {.side = random.Below(2) == 0 ? Side::kKey : Side::kValue,
          .bits = static_cast<int>(2 + random.Below(3)),
          .granularity = kGranularities[random.Below(4)]};
}

TEST_P(RecencyPolicyConformanceTest, DefaultsServeTheUsualFormats) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  CounterRandom random(/*seed=*/1, /*stream=*/0);
  for (int i = 0; i < 100; ++i)
    EXPECT_OK(policy->Validate(RandomStream(random)));
  EXPECT_GE(policy->sink_tokens(), 0);
}

TEST_P(RecencyPolicyConformanceTest,
       TokensLeaveInMultiplesOfTheGranularityAndWithinTheWindow) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  CounterRandom random(/*seed=*/2, /*stream=*/0);
  for (int i = 0; i < 20000; ++i) {
    WindowState state = RandomStream(random);
    // All magnitudes, up to contexts of 2^40 tokens.
    state.window_tokens =
        static_cast<int64_t>(random.Below(uint64_t{1} << random.Below(41)));
    const int64_t leaving = policy->TokensToQuantize(state);
    ASSERT_GE(leaving, 0);
    ASSERT_LE(leaving, state.window_tokens);
    ASSERT_EQ(leaving % state.granularity, 0);
    ASSERT_EQ(policy->TokensToQuantize(state), leaving);
  }
}

// Token by token the window stays small, at most a quarter of a long context:
// a policy must not forget to quantize.
TEST_P(RecencyPolicyConformanceTest, TheWindowStaysBoundedWhileDecoding) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  CounterRandom random(/*seed=*/3, /*stream=*/0);
  for (int i = 0; i < 20; ++i) {
    WindowState state = RandomStream(random);
    for (int step = 0; step < 5000; ++step) {
      ++state.window_tokens;
      const int64_t leaving = policy->TokensToQuantize(state);
      state.window_tokens -= leaving;
      state.packed_tokens += leaving;
    }
    EXPECT_LE(state.window_tokens, 256 + state.packed_tokens / 4);
  }
}

TEST_P(RecencyPolicyConformanceTest, OptionsOfAnotherTypeAreRefused) {
  component_.mutable_options()->PackFrom(Component());
  EXPECT_THAT(Make().status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("but the config gives kvmix.Component")));
}

INSTANTIATE_TEST_SUITE_P(
    Linked, RecencyPolicyConformanceTest,
    ::testing::ValuesIn(Registry<RecencyPolicy>::Get().Names()),
    [](const auto& test) { return test.param; });

TEST(RecencyPolicyRegistryTest, UnknownNameListsLinkedOnes) {
  Component component;
  component.set_name("sliding");
  const auto made =
      Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
  for (const std::string& name : Registry<RecencyPolicy>::Get().Names()) {
    EXPECT_THAT(made.status(),
                StatusIs(absl::StatusCode::kNotFound, HasSubstr(name)));
  }
}

}  // namespace
}  // namespace kvmix
