#include <limits>
#include <memory>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/top_fraction.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

// A profile of keys and values with these scores.
ImportanceProfile Profile(const std::vector<double>& key,
                          const std::vector<double>& value) {
  ImportanceProfile profile;
  for (size_t i = 0; i < key.size(); ++i) {
    LayerImportance* layer = profile.add_layer();
    layer->set_key(key[i]);
    layer->set_value(value[i]);
  }
  return profile;
}

ImportanceProfile EqualScores(int num_layers) {
  const std::vector<double> ones(num_layers, 1.0);
  return Profile(ones, ones);
}

absl::StatusOr<CachePlan> Allocate(const ImportanceProfile& profile,
                                   const TopFractionOptions& options = {}) {
  Component component;
  component.set_name("top_fraction");
  component.mutable_options()->PackFrom(options);
  KVMIX_ASSIGN_OR_RETURN(
      const auto allocator,
      Registry<BitAllocator>::Get().Make(component, "bit_allocator"));
  AnyBitsQuantizer quantizer;
  return allocator->Allocate(profile, {.num_layers = profile.layer_size(),
                                       .head_dim = 128,
                                       .quantizer = &quantizer});
}

std::set<int> LayersWith(const CachePlan& plan, Side side, int bits) {
  std::set<int> layers;
  for (int i = 0; i < plan.layer_size(); ++i) {
    const LayerPlan& layer = plan.layer(i);
    if ((side == Side::kKey ? layer.key() : layer.value()).bits() == bits)
      layers.insert(i);
  }
  return layers;
}

int NumHigh(int num_layers, const TopFractionOptions& options) {
  const auto plan = Allocate(EqualScores(num_layers), options);
  EXPECT_OK(plan);
  return static_cast<int>(LayersWith(*plan, Side::kKey, 3).size());
}

TEST(TopFractionTest, KeysAndValuesAreRankedApart) {
  // A fifth of ten layers is two.
  ASSERT_OK_AND_ASSIGN(const CachePlan plan,
                       Allocate(Profile({0, 9, 1, 8, 2, 7, 3, 6, 4, 5},
                                        {5, 4, 6, 3, 7, 2, 8, 1, 9, 0})));
  EXPECT_EQ(LayersWith(plan, Side::kKey, 3), (std::set<int>{1, 3}));
  EXPECT_EQ(LayersWith(plan, Side::kKey, 2).size(), 8);
  EXPECT_EQ(LayersWith(plan, Side::kValue, 4), (std::set<int>{6, 8}));
  EXPECT_EQ(LayersWith(plan, Side::kValue, 2).size(), 8);
}

// A fifth of ten KV heads in five layers is two.
TEST(TopFractionTest, KvHeadsAreRankedAmongAllLayers) {
  ImportanceProfile profile = EqualScores(5);
  const double scores[] = {0, 9, 1, 8, 2, 7, 3, 6, 4, 5};
  for (int i = 0; i < 10; ++i) {
    profile.mutable_layer(i / 2)->add_key_head(scores[i]);
    profile.mutable_layer(i / 2)->add_value_head(i / 2 == 3 ? 1 : 0);
  }
  Component component;
  component.set_name("top_fraction");
  const auto allocator =
      *Registry<BitAllocator>::Get().Make(component, "bit_allocator");
  AnyBitsQuantizer quantizer;
  ASSERT_OK_AND_ASSIGN(
      const CachePlan plan,
      allocator->Allocate(profile, {.num_layers = 5,
                                    .num_kv_heads = 2,
                                    .head_dim = 128,
                                    .granularity = CachePlan::HEAD,
                                    .quantizer = &quantizer}));
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(FormatOfHead(plan.layer(i / 2), Side::kKey, i % 2).bits(),
              i == 1 || i == 3 ? 3 : 2);
    EXPECT_EQ(FormatOfHead(plan.layer(i / 2), Side::kValue, i % 2).bits(),
              i / 2 == 3 ? 4 : 2);
  }
  // Both heads of layer 3 have the same format.
  EXPECT_FALSE(HasHeadFormats(plan.layer(3), Side::kValue));
}

TEST(TopFractionTest, TiesGoToTheEarlierLayer) {
  ASSERT_OK_AND_ASSIGN(const CachePlan equal, Allocate(EqualScores(32)));
  EXPECT_EQ(LayersWith(equal, Side::kKey, 3),
            (std::set<int>{0, 1, 2, 3, 4, 5}));
  ASSERT_OK_AND_ASSIGN(const CachePlan plan,
                       Allocate(Profile({1, 2, 2, 3, 2}, {0, 0, 0, 0, 1}), [] {
                         TopFractionOptions options;
                         options.set_high_fraction(0.4);
                         return options;
                       }()));
  EXPECT_EQ(LayersWith(plan, Side::kKey, 3), (std::set<int>{1, 3}));
  EXPECT_EQ(LayersWith(plan, Side::kValue, 4), (std::set<int>{0, 4}));
}

// The paper's plans for 32 layers: k2.19v2.38 and k2.28v2.56.
TEST(TopFractionTest, NominalBitsOfThePaper) {
  const auto mean_bits = [](double fraction, Side side) {
    TopFractionOptions options;
    options.set_high_fraction(fraction);
    const auto plan = Allocate(EqualScores(32), options);
    double sum = 0;
    for (const LayerPlan& layer : plan->layer())
      sum += (side == Side::kKey ? layer.key() : layer.value()).bits();
    return sum / 32;
  };
  EXPECT_DOUBLE_EQ(mean_bits(0.2, Side::kKey), 2.1875);
  EXPECT_DOUBLE_EQ(mean_bits(0.2, Side::kValue), 2.375);
  EXPECT_DOUBLE_EQ(mean_bits(0.3, Side::kKey), 2.28125);
  EXPECT_DOUBLE_EQ(mean_bits(0.3, Side::kValue), 2.5625);
}

TEST(TopFractionTest, CountRules) {
  TopFractionOptions options;
  EXPECT_EQ(NumHigh(32, options), 6);
  EXPECT_EQ(NumHigh(28, options), 5);  // floor(5.6)
  EXPECT_EQ(NumHigh(4, options), 0);
  options.set_count_rule(TopFractionOptions::RELEASED);
  EXPECT_EQ(NumHigh(32, options), 6);
  EXPECT_EQ(NumHigh(28, options), 4);  // int(2.8) * 2
  EXPECT_EQ(NumHigh(30, options), 6);
}

TEST(TopFractionTest, FractionIsTakenAsWritten) {
  TopFractionOptions options;
  options.set_high_fraction(0.29);
  EXPECT_EQ(NumHigh(100, options), 29);
  options.set_high_fraction(0);
  EXPECT_EQ(NumHigh(100, options), 0);
  options.set_high_fraction(1);
  EXPECT_EQ(NumHigh(100, options), 100);
}

TEST(TopFractionTest, BitsAreOptions) {
  TopFractionOptions options;
  options.mutable_keys()->set_high(4);
  options.mutable_values()->set_low(1);
  ASSERT_OK_AND_ASSIGN(const CachePlan plan,
                       Allocate(EqualScores(10), options));
  EXPECT_EQ(LayersWith(plan, Side::kKey, 4).size(), 2);
  EXPECT_EQ(LayersWith(plan, Side::kKey, 2).size(), 8);
  EXPECT_EQ(LayersWith(plan, Side::kValue, 4).size(), 2);
  EXPECT_EQ(LayersWith(plan, Side::kValue, 1).size(), 8);
}

TEST(TopFractionTest, BitsThatTheQuantizerDoesNotOfferNameTheLayer) {
  TopFractionOptions options;
  options.mutable_values()->set_low(9);
  EXPECT_THAT(Allocate(EqualScores(10), options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer 2: values: bits is 9")));
}

TEST(TopFractionTest, OptionsOutOfRangeAreRefused) {
  TopFractionOptions options;
  options.set_high_fraction(1.01);
  EXPECT_THAT(Allocate(EqualScores(4), options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.high_fraction is 1.01 but must be in "
                                 "[0, 1]")));
  options.set_high_fraction(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(Allocate(EqualScores(4), options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.high_fraction is nan")));
}

TEST(TopFractionTest, AProfileThatIsNotFiniteIsRefused) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Allocate(Profile({1, 2}, {3, nan})).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("score of layer 1 values is nan")));
}

}  // namespace
}  // namespace kvmix
