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
#include "kvmix/eviction/eviction_test_state.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::RandomLayer;
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

RandomLayer::Shape RandomShape(CounterRandom& random) {
  RandomLayer::Shape shape;
  shape.num_heads = static_cast<int>(1 + random.Below(3));
  shape.query_heads = static_cast<int>(1 + random.Below(3));
  shape.num_tokens = static_cast<int64_t>(1 + random.Below(200));
  shape.tokens_seen =
      shape.num_tokens + static_cast<int64_t>(random.Below(100));
  shape.queries =
      static_cast<int64_t>(1 + random.Below((shape.num_tokens + 1) / 2));
  shape.multiple = random.Below(2) == 0 ? 1 : 16;
  if (random.Below(2) == 0) {
    shape.sinks = static_cast<int64_t>(random.Below(shape.num_tokens / 4 + 1));
    shape.demoted =
        static_cast<int64_t>(random.Below(shape.num_tokens / 4 + 1));
  }
  shape.layer = static_cast<int>(random.Below(4));
  return shape;
}

TEST_P(EvictionPolicyConformanceTest, DropsAscendingTokensThatMayLeave) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(component_));
  CounterRandom random(/*seed=*/3, /*stream=*/0);
  int64_t drops = 0;
  for (int i = 0; i < 100; ++i) {
    const RandomLayer layer(RandomShape(random), i);
    const EvictionState& state = layer.state();
    const std::vector<TokenList> dropped = policy->TokensToDrop(state);
    ASSERT_EQ(dropped.size(), state.heads.size());
    for (size_t h = 0; h < dropped.size(); ++h) {
      int64_t previous = state.heads[h].first_candidate - 1;
      for (const int64_t token : dropped[h]) {
        ASSERT_GT(token, previous);
        ASSERT_LT(token, state.heads[h].num_tokens);
        previous = token;
      }
      ASSERT_EQ(dropped[h].size() % state.multiple, 0u);
      drops += static_cast<int64_t>(dropped[h].size());
      if (!policy->WouldDrop(state)) {
        ASSERT_TRUE(dropped[h].empty());
      }
    }
    ASSERT_EQ(policy->TokensToDrop(state), dropped);
  }
  EXPECT_EQ(drops > 0, policy->evicts());
}

// WouldDrop sees counts and positions alone.
TEST_P(EvictionPolicyConformanceTest, AsksForTheSignalsThatItReads) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(component_));
  const EvictionSignals signals = policy->signals();
  const RandomLayer layer({}, 1);
  EvictionState state = layer.state();
  for (EvictionHead& head : state.heads) {
    if (!signals.keys) head.keys = nullptr;
    if (!signals.values) head.values = nullptr;
    if (!signals.received) head.received = nullptr;
    if (signals.query_window == 0) head.scores = nullptr;
  }
  EXPECT_EQ(policy->TokensToDrop(state), policy->TokensToDrop(layer.state()));
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
  EXPECT_FALSE(policy->evicts());
  const RandomLayer layer({.num_tokens = 1000, .tokens_seen = 1 << 20}, 1);
  EXPECT_FALSE(policy->WouldDrop(layer.state()));
  for (const TokenList& dropped : policy->TokensToDrop(layer.state()))
    EXPECT_TRUE(dropped.empty());
}

}  // namespace
}  // namespace kvmix
