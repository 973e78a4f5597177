#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "kvmix/allocation/any_bits_quantizer.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/manual.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

// "key/value" bits of each of eight layers; "2,4,2/3" if KV heads differ.
absl::StatusOr<std::vector<std::string>> Allocate(const std::string& text) {
  ManualOptions options;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &options));
  Component component;
  component.set_name("manual");
  component.mutable_options()->PackFrom(options);
  KVMIX_ASSIGN_OR_RETURN(
      const auto allocator,
      Registry<BitAllocator>::Get().Make(component, "bit_allocator"));
  AnyBitsQuantizer quantizer;
  KVMIX_ASSIGN_OR_RETURN(const CachePlan plan,
                         allocator->Allocate({}, {.num_layers = 8,
                                                  .num_kv_heads = 3,
                                                  .head_dim = 128,
                                                  .quantizer = &quantizer}));
  const auto bits_of = [](const LayerPlan& layer, Side side) {
    std::vector<int> bits;
    for (const QuantFormat* format : FormatsOf(layer, side))
      bits.push_back(format->bits());
    return absl::StrJoin(bits, ",");
  };
  std::vector<std::string> bits;
  for (const LayerPlan& layer : plan.layer())
    bits.push_back(absl::StrCat(bits_of(layer, Side::kKey), "/",
                                bits_of(layer, Side::kValue)));
  return bits;
}

TEST(ManualTest, RangesIncludeBothEnds) {
  ASSERT_OK_AND_ASSIGN(
      const auto bits,
      Allocate(
          "entry { layers: '0-2, 6' bits { key_bits: 4 value_bits: 3 } }"
          "entry { layers: '7,3-5' bits { key_bits: 2 value_bits: 16 } }"));
  EXPECT_THAT(bits, ElementsAre("4/3", "4/3", "4/3", "2/16", "2/16", "2/16",
                                "4/3", "2/16"));
}

TEST(ManualTest, OtherLayersGetTheBitsOfTheRest) {
  ASSERT_OK_AND_ASSIGN(
      const auto bits,
      Allocate("entry { layers: '3' bits { key_bits: 2 value_bits: 2 } }"
               "other_layers { key_bits: 16 value_bits: 16 }"));
  EXPECT_THAT(bits, ElementsAre("16/16", "16/16", "16/16", "2/2", "16/16",
                                "16/16", "16/16", "16/16"));
}

TEST(ManualTest, KvHeadsCanBeNamed) {
  ASSERT_OK_AND_ASSIGN(
      const auto bits,
      Allocate("entry { layers: '0-1' heads: '0,2' bits { key_bits: 4 "
               "value_bits: 3 } }"
               "entry { layers: '3' bits { key_bits: 8 value_bits: 8 } }"
               "entry { layers: '0' heads: '1' bits { key_bits: 4 value_bits: "
               "16 } }"
               "other_layers { key_bits: 2 value_bits: 3 }"));
  EXPECT_THAT(bits, ElementsAre("4/3,16,3", "4,2,4/3", "2/3", "8/8", "2/3",
                                "2/3", "2/3", "2/3"));
}

TEST(ManualTest, AKvHeadGetsBitsExactlyOnce) {
  EXPECT_THAT(Allocate("entry { layers: '0-7' heads: '0-1' bits { key_bits: 2 "
                       "value_bits: 2 } }")
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("no options.entry names layer 0 head 2;")));
  EXPECT_THAT(
      Allocate("entry { layers: '0-7' bits { key_bits: 2 value_bits: 2 } }"
               "entry { layers: '4' heads: '2' bits { key_bits: 2 value_bits: "
               "2 } }")
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("options.entry[1].layers: layer 4 head 2 is named "
                         "twice")));
  EXPECT_THAT(
      Allocate("entry { layers: '4' heads: '3' bits { key_bits: 2 value_bits: "
               "2 } }")
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("options.entry[0].heads: \"3\" is outside of the "
                         "model's KV heads 0-2")));
}

TEST(ManualTest, EveryLayerGetsBitsExactlyOnce) {
  EXPECT_THAT(
      Allocate("entry { layers: '0-6' bits { key_bits: 2 value_bits: 2 } }")
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("no options.entry names layer 7")));
  EXPECT_THAT(
      Allocate("entry { layers: '0-4' bits { key_bits: 2 value_bits: 2 } }"
               "entry { layers: '4-7' bits { key_bits: 2 value_bits: 2 } }")
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("options.entry[1].layers: layer 4 is named twice")));
}

TEST(ManualTest, WhatIsNotALayerIsRefused) {
  for (const char* layers : {"", "x", "1-", "-1", "3-1", "1,,2", "1-2-3", "8",
                             "0-8", "0-99999999999", "0x1", "1.5"}) {
    const absl::Status status =
        Allocate(absl::StrCat("entry { layers: '", layers,
                              "' bits { key_bits: 2 value_bits: 2 } }"))
            .status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("options.entry[0].layers: \"")))
        << layers;
  }
}

TEST(ManualTest, BitsMustBeGiven) {
  EXPECT_THAT(Allocate("entry { layers: '0-7' bits { key_bits: 2 } }").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.entry[0].bits has key_bits 2 and "
                                 "value_bits 0 but both must be positive")));
  EXPECT_THAT(Allocate("other_layers { value_bits: -2 }").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.other_layers has")));
}

}  // namespace
}  // namespace kvmix
