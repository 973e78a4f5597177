// Costs that allocators are told, against the ledger of a whole cache.
#include "experiments/offered_formats.h"

#include <memory>
#include <vector>

#include "experiments/stages.h"
#include "experiments/text_proto.h"
#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

const CacheShape kShape = {.num_layers = 5, .num_kv_heads = 3, .head_dim = 64};

Method MethodOf(const std::string& text) {
  Method method;
  EXPECT_OK(ParseTextProto(text, "test", method));
  return method;
}

std::vector<int> BitsOf(
    const google::protobuf::RepeatedPtrField<QuantFormat>& formats) {
  std::vector<int> bits;
  for (const QuantFormat& format : formats) bits.push_back(format.bits());
  return bits;
}

TEST(OfferedFormatsTest, DefaultIsWhatTheQuantizerOffers) {
  ASSERT_OK_AND_ASSIGN(
      const FormatChoices all,
      OfferedFormats(MethodOf(R"(quantizer { name: "group_affine" })"), 64));
  EXPECT_EQ(BitsOf(all.key()), (std::vector<int>{2, 3, 4, 8, 16}));
  EXPECT_EQ(BitsOf(all.value()), (std::vector<int>{2, 3, 4, 8, 16}));
  ASSERT_OK_AND_ASSIGN(
      const FormatChoices four,
      OfferedFormats(MethodOf(R"(quantizer { name: "nvfp4" })"), 64));
  EXPECT_EQ(BitsOf(four.key()), (std::vector<int>{4, 16}));
}

// It has no ratio for 8 bits.
TEST(OfferedFormatsTest, DefaultLeavesOutWhatTheRecencyPolicyRefuses) {
  ASSERT_OK_AND_ASSIGN(
      const FormatChoices formats,
      OfferedFormats(MethodOf(R"(quantizer { name: "group_affine" }
                                 recency_policy { name: "pivotal_context" })"),
                     64));
  EXPECT_EQ(BitsOf(formats.key()), (std::vector<int>{2, 3, 4, 16}));
}

// KVmix's 3-bit keys take 64 / 11 bits, more than dense 4-bit ones.
TEST(OfferedFormatsTest, CheapestFirstEachOnce) {
  const Method method = MethodOf(R"(
      quantizer { name: "group_affine" options {
        [type.googleapis.com/kvmix.GroupAffineOptions] {
          key { three_bit: KVMIX_3BIT_11 } } } }
      candidate { bits: 16 }
      candidate { bits: 3 sides: KEYS }
      candidate { bits: 4 quantizer { name: "group_affine" } }
      candidate { bits: 4 sides: VALUES }
      candidate { bits: 2 })");
  ASSERT_OK_AND_ASSIGN(const FormatChoices formats, OfferedFormats(method, 64));
  EXPECT_EQ(BitsOf(formats.key()), (std::vector<int>{2, 4, 3, 16}));
  EXPECT_EQ(BitsOf(formats.value()), (std::vector<int>{2, 4, 16}));
}

TEST(OfferedFormatsTest, WhatIsNotOfferedIsAnError) {
  EXPECT_THAT(
      OfferedFormats(
          MethodOf(R"(quantizer { name: "nvfp4" } candidate { bits: 3 })"), 64)
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("candidate[0]")));
  EXPECT_THAT(OfferedFormats(MethodOf(R"(quantizer { name: "group_affine" }
                                         candidate { bits: 3 sides: KEYS })"),
                             64)
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("no candidate is for values")));
}

// To the byte, window, slack and page tables included.
TEST(MeasuredCostsTest, AddUpToTheLedgerOfTheWholeCache) {
  for (const auto& [recency_name, full_precision] :
       {std::pair{"none", CachePlan::HALF},
        {"pivotal_context", CachePlan::HALF},
        {"residual_window", CachePlan::HALF},
        {"pivotal_context", CachePlan::FLOAT}}) {
    const Method method = MethodOf(absl::StrCat(
        R"(quantizer { name: "group_affine" }
           eviction_policy { name: "keep_all" }
           recency_policy { name: ")",
        recency_name, R"(" })"));
    std::shared_ptr<const RecencyPolicy> recency =
        *Registry<RecencyPolicy>::Get().Make(method.recency_policy(),
                                             "recency_policy");
    std::shared_ptr<const EvictionPolicy> eviction =
        *Registry<EvictionPolicy>::Get().Make(method.eviction_policy(),
                                              "eviction_policy");
    ASSERT_OK_AND_ASSIGN(const FormatChoices formats,
                         OfferedFormats(method, kShape.head_dim));
    const std::vector<int64_t> chunks = {128, 128, 100, 1, 1, 1};
    CachePlan plan;
    plan.set_full_precision(full_precision);
    for (int i = 0; i < kShape.num_layers; ++i) {
      LayerPlan* layer = plan.add_layer();
      *layer->mutable_key() = formats.key(i % formats.key_size());
      *layer->mutable_value() =
          formats.value((2 * i + 1) % formats.value_size());
      if (i % 2 == 0) continue;
      layer->clear_key();
      for (int head = 0; head < kShape.num_kv_heads; ++head)
        *layer->add_key_head() = formats.key((i + head) % formats.key_size());
    }
    ASSERT_OK_AND_ASSIGN(const auto cache,
                         KvCache::Create(kShape, plan, recency, eviction));
    const std::vector<float> states(128 * 3 * 64, 0.5f);
    for (int64_t chunk : chunks) {
      for (int i = 0; i < kShape.num_layers; ++i) {
        ASSERT_OK(cache->Append(i, chunk, states.data(), states.data()));
        ASSERT_OK(cache->FinishChunk(i));
      }
    }
    const MeasuredCosts costs(kShape, chunks, recency, full_precision);
    ASSERT_OK_AND_ASSIGN(const int64_t bytes, PlanBytes(plan, costs));
    EXPECT_EQ(bytes, cache->ledger().total()) << recency_name;
    EXPECT_EQ(costs.elements(), 359 * 3 * 64);
  }
}

// A budget that the allocator keeps is kept by the cache.
void ExpectThePlanFitsTheLedger(CachePlan::Granularity granularity) {
  Method method = MethodOf(R"(
      name: "test"
      bit_allocator { name: "knapsack" }
      quantizer { name: "group_affine" }
      recency_policy { name: "pivotal_context" }
      eviction_policy { name: "keep_all" }
      budget { effective_bits: 4.5 context_length: 400 })");
  method.set_granularity(granularity);
  ImportanceProfile profile;
  profile.set_unit(ImportanceProfile::NATS);
  for (int i = 0; i < kShape.num_layers; ++i) {
    profile.add_layer()->set_key(1.0 + i);
    LayerImportance& layer = *profile.mutable_layer(i);
    layer.set_value(9.0 - i);
    for (double head : {0.05, 1.0, 20.0}) {
      layer.add_key_head(head * layer.key());
      layer.add_value_head(head * layer.value());
    }
  }
  Evaluation evaluation;
  evaluation.set_chunk_tokens(100);
  ASSERT_OK_AND_ASSIGN(const RunnableMethod runnable,
                       Allocate(method, profile, kShape, evaluation, 1));
  ASSERT_OK_AND_ASSIGN(const auto cache,
                       KvCache::Create(kShape, runnable.plan, runnable.recency,
                                       runnable.eviction));
  const std::vector<float> states(100 * 3 * 64, 0.5f);
  for (int chunk = 0; chunk < 4; ++chunk) {
    for (int i = 0; i < kShape.num_layers; ++i) {
      ASSERT_OK(cache->Append(i, 100, states.data(), states.data()));
      ASSERT_OK(cache->FinishChunk(i));
    }
  }
  const int64_t budget = 2 * 5 * 400 * 3 * 64 * 4.5 / 8;
  EXPECT_LE(cache->ledger().total(), budget);
  // No room for another bit of the keys or values of what has a format.
  const int heads = granularity == CachePlan::HEAD ? 1 : 3;
  EXPECT_GT(cache->ledger().total() + 400 * heads * 64 / 8, budget);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<BudgetedFormats> formats,
                       FormatsUnderBudget(method, kShape, evaluation));
  EXPECT_EQ(*PlanBytes(runnable.plan, *formats->costs),
            cache->ledger().total());
  bool apart = false;
  for (const LayerPlan& layer : runnable.plan.layer())
    apart |= HasHeadFormats(layer, Side::kKey) ||
             HasHeadFormats(layer, Side::kValue);
  EXPECT_EQ(apart, granularity == CachePlan::HEAD);
}

TEST(AllocateTest, ThePlanOfABudgetFitsTheLedger) {
  ExpectThePlanFitsTheLedger(CachePlan::LAYER);
}

TEST(AllocateTest, ThePlanOfABudgetForKvHeadsFitsTheLedger) {
  ExpectThePlanFitsTheLedger(CachePlan::HEAD);
}

TEST(AllocateTest, APlanAboveItsBudgetIsRefused) {
  const Method method = MethodOf(R"(
      bit_allocator { name: "uniform" }
      quantizer { name: "group_affine" }
      recency_policy { name: "none" }
      eviction_policy { name: "keep_all" }
      budget { effective_bits: 2.9 })");
  EXPECT_THAT(Allocate(method, {}, kShape, Evaluation(), 1).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("(3.0000 bits for each element)")));
}

}  // namespace
}  // namespace kvmix
