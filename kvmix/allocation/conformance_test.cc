// The laws that every bit allocator keeps, checked for all that are linked.
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/budget_problem.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

ImportanceProfile RandomProfile(int num_layers, uint64_t stream) {
  ImportanceProfile profile;
  profile.set_unit(ImportanceProfile::NATS);
  CounterRandom random(/*seed=*/1, stream);
  for (int i = 0; i < num_layers; ++i) {
    LayerImportance* layer = profile.add_layer();
    layer->set_key(random.Uniform());
    layer->set_value(random.Uniform());
  }
  return profile;
}

class BitAllocatorConformanceTest
    : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    component_.set_name(GetParam());
    for (int bits : {2, 4, 8}) {
      QuantFormat* key = choices_.add_key();
      key->set_quantizer("group_affine");
      key->set_bits(bits);
      key->set_group_size(32);
      key->set_axis(QuantFormat::PER_CHANNEL);
      *choices_.add_value() = *key;
      choices_.mutable_value()->rbegin()->set_axis(QuantFormat::PER_TOKEN);
    }
    context_ = {.num_layers = 32,
                .head_dim = 128,
                .seed = 5,
                .quantizer = &quantizer_,
                .choices = &choices_,
                .costs = &costs_,
                .budget_bytes = int64_t{1} << 40};
  }

  absl::StatusOr<std::unique_ptr<BitAllocator>> Make() const {
    return Registry<BitAllocator>::Get().Make(component_, "bit_allocator");
  }

  // An allocator without a useful default says what to set.
  static bool RefusesItsDefaults(const absl::StatusOr<CachePlan>& plan) {
    return plan.status().code() == absl::StatusCode::kInvalidArgument &&
           absl::StrContains(plan.status().message(), "options.");
  }

  AnyBitsQuantizer quantizer_;
  BlockCosts costs_{/*num_kv_heads=*/4, 128};
  FormatChoices choices_;
  AllocationContext context_;
  Component component_;
};

TEST_P(BitAllocatorConformanceTest, EveryLayerHasAFormatForKeysAndValues) {
  ASSERT_OK_AND_ASSIGN(const auto allocator, Make());
  for (int num_layers : {1, 2, 5, 32, 80}) {
    context_.num_layers = num_layers;
    const auto plan =
        allocator->Allocate(RandomProfile(num_layers, 0), context_);
    if (RefusesItsDefaults(plan)) GTEST_SKIP() << plan.status();
    ASSERT_OK(plan);
    ASSERT_EQ(plan->layer_size(), num_layers);
    for (const LayerPlan& layer : plan->layer()) {
      EXPECT_GT(layer.key().bits(), 0);
      EXPECT_GT(layer.value().bits(), 0);
    }
  }
}

TEST_P(BitAllocatorConformanceTest, SameInputGivesTheSamePlan) {
  ASSERT_OK_AND_ASSIGN(const auto a, Make());
  ASSERT_OK_AND_ASSIGN(const auto b, Make());
  const auto plan = a->Allocate(RandomProfile(32, 1), context_);
  if (RefusesItsDefaults(plan)) GTEST_SKIP() << plan.status();
  const auto again = b->Allocate(RandomProfile(32, 1), context_);
  ASSERT_OK(plan);
  ASSERT_OK(again);
  EXPECT_EQ(plan->SerializeAsString(), again->SerializeAsString());
}

TEST_P(BitAllocatorConformanceTest, AProfileIsReadIfAndOnlyIfItIsNeeded) {
  ASSERT_OK_AND_ASSIGN(const auto allocator, Make());
  const auto without = allocator->Allocate(ImportanceProfile(), context_);
  const auto with = allocator->Allocate(RandomProfile(32, 2), context_);
  if (allocator->NeedsProfile()) {
    EXPECT_THAT(without.status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("the profile has 0 layers")));
    EXPECT_OK(with);
    return;
  }
  if (RefusesItsDefaults(without)) GTEST_SKIP() << without.status();
  ASSERT_OK(without);
  ASSERT_OK(with);
  EXPECT_EQ(without->SerializeAsString(), with->SerializeAsString());
}

// To the byte: budgets that are what some plan takes, one byte more and less.
TEST_P(BitAllocatorConformanceTest, TheBudgetIsNeverExceeded) {
  ASSERT_OK_AND_ASSIGN(const auto allocator, Make());
  if (!allocator->KeepsBudget()) GTEST_SKIP() << "does not look at a budget";
  for (BudgetProblem problem : {BudgetProblem({1, 2, 3, 4, 8, 16}, 7),
                                BudgetProblem({1, 2, 3, 4, 8, 16}, 2, 4)}) {
    problem.SetRandomLosses(3);
    const int64_t items = 2 * problem.Context().num_parts();
    const int64_t least = items * 100;
    for (int64_t budget = least - 1; budget < items * 1700; budget += 499) {
      for (int64_t bytes : {budget, budget + 1}) {
        problem.budget_bytes = bytes;
        const absl::StatusOr<CachePlan> plan =
            allocator->Allocate(problem.profile, problem.Context());
        if (bytes < least) {
          EXPECT_THAT(plan.status(),
                      StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr(absl::StrCat(
                                   "the cheapest plan takes ", least))));
          continue;
        }
        ASSERT_OK(plan);
        EXPECT_OK(CheckBudget(*plan, bytes, problem.costs));
      }
    }
  }
}

// A plan for single KV heads is made of what the profile says of these, and
// some head gets another format than its neighbour.
TEST_P(BitAllocatorConformanceTest, KvHeadsAreToldApartIfTheProfileDoes) {
  ASSERT_OK_AND_ASSIGN(const auto allocator, Make());
  context_.granularity = CachePlan::HEAD;
  context_.num_kv_heads = costs_.num_kv_heads();
  context_.budget_bytes = 2 * context_.num_layers * costs_.elements() * 4 / 8;
  ImportanceProfile profile = RandomProfile(context_.num_layers, 4);
  const auto without = allocator->Allocate(profile, context_);
  if (RefusesItsDefaults(without)) GTEST_SKIP() << without.status();
  CounterRandom random(/*seed=*/1, /*stream=*/5);
  for (LayerImportance& layer : *profile.mutable_layer()) {
    for (int head = 0; head < context_.num_kv_heads; ++head) {
      layer.add_key_head(random.Uniform());
      layer.add_value_head(random.Uniform());
    }
  }
  ASSERT_OK_AND_ASSIGN(const CachePlan plan,
                       allocator->Allocate(profile, context_));
  EXPECT_OK(CheckHeads(plan, context_.num_kv_heads));
  if (allocator->NeedsProfile()) {
    EXPECT_THAT(without.status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("granularity is HEAD but the profile")));
    bool apart = false;
    for (const LayerPlan& layer : plan.layer())
      apart |= HasHeadFormats(layer, Side::kKey);
    EXPECT_TRUE(apart);
  }
}

TEST_P(BitAllocatorConformanceTest, AMissingBudgetIsAskedFor) {
  ASSERT_OK_AND_ASSIGN(const auto allocator, Make());
  if (!allocator->KeepsBudget()) GTEST_SKIP() << "does not look at a budget";
  context_.choices = nullptr;
  context_.costs = nullptr;
  context_.budget_bytes = 0;
  EXPECT_THAT(allocator->Allocate(RandomProfile(32, 0), context_).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("budget { effective_bits: 3 }")));
}

TEST_P(BitAllocatorConformanceTest, OptionsOfAnotherTypeAreRefused) {
  component_.mutable_options()->PackFrom(Component());
  EXPECT_THAT(Make().status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("but the config gives kvmix.Component")));
}

INSTANTIATE_TEST_SUITE_P(
    Linked, BitAllocatorConformanceTest,
    ::testing::ValuesIn(Registry<BitAllocator>::Get().Names()),
    [](const auto& test) { return test.param; });

TEST(BitAllocatorRegistryTest, UnknownNameListsLinkedOnes) {
  Component component;
  component.set_name("astrology");
  const auto made =
      Registry<BitAllocator>::Get().Make(component, "bit_allocator");
  for (const std::string& name : Registry<BitAllocator>::Get().Names()) {
    EXPECT_THAT(made.status(),
                StatusIs(absl::StatusCode::kNotFound, HasSubstr(name)));
  }
}

}  // namespace
}  // namespace kvmix
