// The laws that every eviction policy keeps, checked for all that are linked.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<std::unique_ptr<EvictionPolicy>> Make(
    const Component& component) {
  return Registry<EvictionPolicy>::Get().Make(component, "eviction_policy");
}

class EvictionPolicyConformanceTest
    : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { component_.set_name(GetParam()); }
  Component component_;
};

TEST_P(EvictionPolicyConformanceTest, DropsAscendingTokensOfTheCache) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(component_));
  CounterRandom random(/*seed=*/3, /*stream=*/0);
  for (int i = 0; i < 1000; ++i) {
    const EvictionState state = {
        .layer = static_cast<int>(random.Below(32)),
        .kv_head = static_cast<int>(random.Below(8)),
        .num_tokens = static_cast<int64_t>(random.Below(5000))};
    int64_t previous = -1;
    const std::vector<int64_t> dropped = policy->TokensToDrop(state);
    for (int64_t token : dropped) {
      ASSERT_GT(token, previous);
      ASSERT_LT(token, state.num_tokens);
      previous = token;
    }
    ASSERT_EQ(policy->TokensToDrop(state), dropped);
  }
}

TEST_P(EvictionPolicyConformanceTest, OptionsOfAnotherTypeAreRefused) {
  component_.mutable_options()->PackFrom(Component());
  EXPECT_THAT(Make(component_).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("but the config gives kvmix.Component")));
}

INSTANTIATE_TEST_SUITE_P(
    Linked, EvictionPolicyConformanceTest,
    ::testing::ValuesIn(Registry<EvictionPolicy>::Get().Names()),
    [](const auto& test) { return test.param; });

TEST(EvictionPolicyRegistryTest, UnknownNameListsLinkedOnes) {
  Component component;
  component.set_name("heavy_hitters");
  EXPECT_THAT(Make(component).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("keep_all")));
}

TEST(KeepAllTest, DropsNothingAndNeedsNoSignal) {
  Component component;
  component.set_name("keep_all");
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(component));
  EXPECT_TRUE(policy->RequiredSignals().empty());
  EXPECT_TRUE(policy->TokensToDrop({.num_tokens = 1 << 20}).empty());
}

}  // namespace
}  // namespace kvmix
