#include "kvmix/cache_plan.h"

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

QuantFormat Bits(int bits) {
  QuantFormat format;
  format.set_bits(bits);
  return format;
}

std::vector<int> BitsOf(const LayerPlan& layer, Side side) {
  std::vector<int> bits;
  for (const QuantFormat* format : FormatsOf(layer, side))
    bits.push_back(format->bits());
  return bits;
}

TEST(CachePlanTest, HeadsThatAreAlikeAreWrittenAsOne) {
  LayerPlan layer;
  SetFormats({Bits(2), Bits(4), Bits(2)}, Side::kKey, layer);
  SetFormats({Bits(3), Bits(3), Bits(3)}, Side::kValue, layer);
  EXPECT_TRUE(HasHeadFormats(layer, Side::kKey));
  EXPECT_FALSE(layer.has_key());
  EXPECT_EQ(BitsOf(layer, Side::kKey), (std::vector<int>{2, 4, 2}));
  EXPECT_FALSE(HasHeadFormats(layer, Side::kValue));
  EXPECT_EQ(BitsOf(layer, Side::kValue), std::vector<int>{3});
  for (int head = 0; head < 3; ++head) {
    EXPECT_EQ(FormatOfHead(layer, Side::kKey, head).bits(), head == 1 ? 4 : 2);
    EXPECT_EQ(FormatOfHead(layer, Side::kValue, head).bits(), 3);
  }
  SetFormats({Bits(8)}, Side::kKey, layer);
  EXPECT_EQ(layer.key_head_size(), 0);
  EXPECT_EQ(layer.key().bits(), 8);
}

TEST(CachePlanTest, EveryFormatCanBeChanged) {
  LayerPlan layer;
  SetFormats({Bits(2), Bits(4)}, Side::kKey, layer);
  SetFormats({Bits(3)}, Side::kValue, layer);
  for (const Side side : {Side::kKey, Side::kValue}) {
    for (QuantFormat* format : MutableFormatsOf(layer, side))
      format->set_bits(format->bits() + 1);
  }
  EXPECT_EQ(BitsOf(layer, Side::kKey), (std::vector<int>{3, 5}));
  EXPECT_EQ(BitsOf(layer, Side::kValue), std::vector<int>{4});
}

TEST(CachePlanTest, FullPrecisionIsThatOfEveryHead) {
  CachePlan plan;
  LayerPlan& layer = *plan.add_layer();
  SetFormats({Bits(16)}, Side::kKey, layer);
  SetFormats({Bits(16)}, Side::kValue, layer);
  EXPECT_TRUE(IsFullPrecision(plan));
  SetFormats({Bits(16), Bits(8)}, Side::kValue, layer);
  EXPECT_FALSE(IsFullPrecision(plan));
}

TEST(CachePlanTest, HeadsMustBeThoseOfTheModelAndStandAlone) {
  CachePlan plan;
  SetFormats({Bits(2)}, Side::kKey, *plan.add_layer());
  SetFormats({Bits(2), Bits(4)}, Side::kValue, *plan.mutable_layer(0));
  EXPECT_OK(CheckHeads(plan, 2));
  EXPECT_THAT(CheckHeads(plan, 3),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer[0] value_head has 2 formats but the "
                                 "model has 3 KV heads; give one for each")));
  plan.mutable_layer(0)->mutable_value()->set_bits(2);
  EXPECT_THAT(CheckHeads(plan, 2),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("layer[0] has both value and value_head")));
}

}  // namespace
}  // namespace kvmix
