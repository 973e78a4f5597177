#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/tiers.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

// Keys score 0, 1, 2, ...; values the other way round.
absl::StatusOr<CachePlan> Allocate(int num_layers,
                                   const TiersOptions& options = {}) {
  ImportanceProfile profile;
  for (int i = 0; i < num_layers; ++i) {
    LayerImportance* layer = profile.add_layer();
    layer->set_key(i);
    layer->set_value(num_layers - i);
  }
  Component component;
  component.set_name("tiers");
  component.mutable_options()->PackFrom(options);
  KVMIX_ASSIGN_OR_RETURN(
      const auto allocator,
      Registry<BitAllocator>::Get().Make(component, "bit_allocator"));
  AnyBitsQuantizer quantizer;
  return allocator->Allocate(
      profile,
      {.num_layers = num_layers, .head_dim = 64, .quantizer = &quantizer});
}

TiersOptions::Tier Tier(double fraction, int key_bits, int value_bits) {
  TiersOptions::Tier tier;
  tier.set_fraction(fraction);
  tier.set_key_bits(key_bits);
  tier.set_value_bits(value_bits);
  return tier;
}

TEST(TiersTest, DefaultIsATenthAt8TwoTenthsAt4TheRestAt2) {
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, Allocate(10));
  std::vector<int> keys, values;
  for (const LayerPlan& layer : plan.layer()) {
    keys.push_back(layer.key().bits());
    values.push_back(layer.value().bits());
  }
  EXPECT_EQ(keys, (std::vector<int>{2, 2, 2, 2, 2, 2, 2, 4, 4, 8}));
  EXPECT_EQ(values, (std::vector<int>{8, 4, 4, 2, 2, 2, 2, 2, 2, 2}));
}

// 0.1 + 0.2 is a little more than 0.3 and 0.1 + 0.7 a little less than 0.8.
TEST(TiersTest, SumsOfFractionsAreTakenAsWritten) {
  TiersOptions options;
  *options.add_tier() = Tier(0.1, 8, 8);
  *options.add_tier() = Tier(0.7, 4, 3);
  *options.add_tier() = Tier(0, 2, 1);
  ASSERT_OK_AND_ASSIGN(const CachePlan plan, Allocate(10, options));
  std::multiset<int> keys, values;
  for (const LayerPlan& layer : plan.layer()) {
    keys.insert(layer.key().bits());
    values.insert(layer.value().bits());
  }
  EXPECT_EQ(keys, (std::multiset<int>{8, 4, 4, 4, 4, 4, 4, 4, 2, 2}));
  EXPECT_EQ(values, (std::multiset<int>{8, 3, 3, 3, 3, 3, 3, 3, 1, 1}));
}

TEST(TiersTest, FractionsOfMoreThanAllLayersAreRefused) {
  TiersOptions options;
  *options.add_tier() = Tier(0.6, 8, 8);
  *options.add_tier() = Tier(0.6, 4, 4);
  *options.add_tier() = Tier(0, 2, 2);
  EXPECT_THAT(Allocate(10, options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("the sum of options.tier fractions is 1.2")));
  options.mutable_tier(0)->clear_key_bits();
  EXPECT_THAT(Allocate(10, options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.tier[0].key_bits is 0")));
}

}  // namespace
}  // namespace kvmix
