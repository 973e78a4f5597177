#include "kvmix/budget.h"

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

constexpr int kHeadDim = 128;

QuantFormat Format(int bits, QuantFormat::Axis axis,
                   QuantFormat::Packing packing = QuantFormat::DENSE) {
  QuantFormat format;
  format.set_quantizer("group_affine");
  format.set_bits(bits);
  format.set_group_size(packing == QuantFormat::DENSE ? 32 : 11);
  format.set_axis(axis);
  format.set_packing(packing);
  return format;
}

// KVmix as published on 32 layers: the first `high` layers have 3-bit keys in
// words of 11 and 4-bit values, the others 2 bits.
CachePlan KvmixPlan(int high) {
  CachePlan plan;
  for (int i = 0; i < 32; ++i) {
    LayerPlan* layer = plan.add_layer();
    const bool is_high = i < high;
    *layer->mutable_key() = is_high ? Format(3, QuantFormat::PER_CHANNEL,
                                             QuantFormat::KVMIX_3BIT_11)
                                    : Format(2, QuantFormat::PER_CHANNEL);
    *layer->mutable_value() = Format(is_high ? 4 : 2, QuantFormat::PER_TOKEN);
  }
  return plan;
}

TEST(BudgetTest, NominalBitsOfKvmix) {
  ASSERT_OK_AND_ASSIGN(const PlanBits six, BitsOfPlan(KvmixPlan(6), kHeadDim));
  EXPECT_DOUBLE_EQ(six.key.nominal, 2.1875);
  EXPECT_DOUBLE_EQ(six.value.nominal, 2.375);
  ASSERT_OK_AND_ASSIGN(const PlanBits nine, BitsOfPlan(KvmixPlan(9), kHeadDim));
  EXPECT_DOUBLE_EQ(nine.key.nominal, 2.28125);
  EXPECT_DOUBLE_EQ(nine.value.nominal, 2.5625);
}

// A word of 11 codes with scale and zero point is 64 bits; a group of 32 adds
// one bit to each element.
TEST(BudgetTest, EffectiveBitsOfKvmixCountScalesAndZeroPoints) {
  ASSERT_OK_AND_ASSIGN(const PlanBits bits, BitsOfPlan(KvmixPlan(6), kHeadDim));
  EXPECT_DOUBLE_EQ(bits.key.effective, (6 * 64.0 / 11 + 26 * 3) / 32);
  EXPECT_NEAR(bits.key.effective, 3.53, 0.005);
  EXPECT_DOUBLE_EQ(bits.value.effective, 3.375);
  EXPECT_NEAR(bits.compression(), 4.64, 0.005);
}

TEST(BudgetTest, FullPrecisionTakes16Bits) {
  CachePlan plan;
  plan.add_layer()->mutable_key()->set_bits(16);
  plan.mutable_layer(0)->mutable_value()->set_bits(16);
  ASSERT_OK_AND_ASSIGN(const PlanBits bits, BitsOfPlan(plan, kHeadDim));
  EXPECT_EQ(bits.key.nominal, 16);
  EXPECT_EQ(bits.value.effective, 16);
  EXPECT_EQ(bits.compression(), 1);
}

TEST(BudgetTest, FullPrecisionTakesWhatItsNumbersTake) {
  CachePlan plan;
  plan.add_layer()->mutable_key()->set_bits(16);
  plan.mutable_layer(0)->mutable_value()->set_bits(16);
  for (const auto& [type, expected] :
       {std::pair{CachePlan::BFLOAT16, 16}, {CachePlan::FLOAT, 32}}) {
    plan.set_full_precision(type);
    ASSERT_OK_AND_ASSIGN(const PlanBits bits, BitsOfPlan(plan, kHeadDim));
    EXPECT_EQ(bits.key.nominal, expected);
    EXPECT_EQ(bits.value.effective, expected);
    const BlockCosts costs(2, kHeadDim, type);
    ASSERT_OK_AND_ASSIGN(const int64_t bytes, PlanBytes(plan, costs));
    EXPECT_EQ(8 * bytes, expected * 2 * costs.elements());
  }
}

TEST(BudgetTest, APlanThatCannotBeReadNamesLayerAndSide) {
  EXPECT_THAT(BitsOfPlan(CachePlan(), kHeadDim).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("the plan has no layers")));
  CachePlan plan = KvmixPlan(6);
  plan.mutable_layer(3)->mutable_value()->set_group_size(48);
  EXPECT_THAT(BitsOfPlan(plan, kHeadDim).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer 3 values: group_size is 48")));
  plan.mutable_layer(2)->clear_key();
  EXPECT_THAT(BitsOfPlan(plan, kHeadDim).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer 2 keys: the plan has no format")));
  plan.mutable_layer(1)->mutable_key()->set_quantizer("vector");
  EXPECT_THAT(BitsOfPlan(plan, kHeadDim).status(),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("layer 1 keys: quantizer \"vector\"")));
}

// Two layers of 100 elements a side; a format takes 10 bytes a bit.
class TenBytesABit final : public LayerCosts {
 public:
  explicit TenBytesABit(int num_kv_heads = 1) : num_kv_heads_(num_kv_heads) {}
  absl::StatusOr<int64_t> HeadBytes(Side, int,
                                    const QuantFormat& format) const override {
    return 10 * format.bits() / num_kv_heads_;
  }
  int num_kv_heads() const override { return num_kv_heads_; }
  int64_t elements() const override { return 100; }

 private:
  const int num_kv_heads_;
};

TEST(BudgetTest, BytesOfAPlanAreTheSumOverLayersAndSides) {
  ASSERT_OK_AND_ASSIGN(const int64_t bytes,
                       PlanBytes(KvmixPlan(6), TenBytesABit()));
  EXPECT_EQ(bytes, 10 * (6 * 3 + 26 * 2 + 6 * 4 + 26 * 2));
}

// Effective bits of blocks and bytes of an endless context say the same.
TEST(BudgetTest, BlocksAloneCostTheirEffectiveBits) {
  const BlockCosts costs(/*num_kv_heads=*/8, kHeadDim);
  const CachePlan plan = KvmixPlan(6);
  ASSERT_OK_AND_ASSIGN(const PlanBits bits, BitsOfPlan(plan, kHeadDim));
  ASSERT_OK_AND_ASSIGN(const int64_t bytes, PlanBytes(plan, costs));
  const double elements = 2.0 * 32 * costs.elements();
  // Each of the 512 sums is rounded up by less than a byte.
  EXPECT_NEAR(8.0 * bytes / elements,
              (bits.key.effective + bits.value.effective) / 2,
              8 * 512 / elements);
}

TEST(BudgetTest, ABudgetInBitsIsRoundedDownToBytes) {
  Budget budget;
  budget.set_effective_bits(3.01);
  EXPECT_EQ(*BudgetBytes(budget, 2, TenBytesABit()), 150);  // 150.5
  budget.clear_effective_bits();
  budget.set_bytes(77);
  budget.set_context_length(10);
  EXPECT_EQ(*BudgetBytes(budget, 2, TenBytesABit()), 77);
}

TEST(BudgetTest, ABudgetThatIsNotOneIsRefused) {
  const auto error = [](const Budget& budget) {
    return BudgetBytes(budget, 2, TenBytesABit()).status();
  };
  Budget budget;
  EXPECT_THAT(error(budget),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("exactly one of effective_bits and bytes")));
  budget.set_bytes(5);
  EXPECT_THAT(error(budget),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("budget.bytes needs budget.context_length")));
  budget.set_effective_bits(-1);
  EXPECT_THAT(error(budget),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("budget.effective_bits is -1")));
}

// Layer 0 with 2-bit keys in five of its KV heads and 8-bit ones in the others.
CachePlan MixedHeads() {
  CachePlan plan = KvmixPlan(6);
  LayerPlan& layer = *plan.mutable_layer(0);
  layer.clear_key();
  for (int head = 0; head < 8; ++head)
    *layer.add_key_head() = Format(head < 5 ? 2 : 8, QuantFormat::PER_CHANNEL);
  return plan;
}

TEST(BudgetTest, KvHeadsCountEachForItself) {
  const CachePlan plan = MixedHeads();
  ASSERT_OK_AND_ASSIGN(const PlanBits bits, BitsOfPlan(plan, kHeadDim));
  EXPECT_DOUBLE_EQ(bits.key.nominal, 2.1875 + ((5 * 2 + 3 * 8) / 8.0 - 3) / 32);
  EXPECT_DOUBLE_EQ(bits.key.effective,
                   ((5 * 3 + 3 * 9) / 8.0 + 5 * 64.0 / 11 + 26 * 3) / 32);
  ASSERT_OK_AND_ASSIGN(const int64_t bytes, PlanBytes(plan, TenBytesABit(8)));
  // Whole bytes of a head: 10 * bits / 8, rounded down.
  EXPECT_EQ(bytes, 5 * 2 + 3 * 10 + 8 * (5 * 3 + 26 * 2 + 6 * 5 + 26 * 2));
}

TEST(BudgetTest, APlanOfAnotherNumberOfKvHeadsIsRefused) {
  EXPECT_THAT(PlanBytes(MixedHeads(), TenBytesABit(4)).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer[0] key_head has 8 formats but the "
                                 "model has 4 KV heads")));
}

TEST(BudgetTest, OneByteTooManyIsRefused) {
  const CachePlan plan = KvmixPlan(6);
  EXPECT_OK(CheckBudget(plan, 1460, TenBytesABit()));
  EXPECT_THAT(CheckBudget(plan, 1459, TenBytesABit()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("the plan takes 1460 bytes")));
}

}  // namespace
}  // namespace kvmix
