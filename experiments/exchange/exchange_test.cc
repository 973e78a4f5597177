#include "experiments/exchange/lm_eval_json.h"
#include "experiments/exchange/plan_formats.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

CachePlan Plan() {
  CachePlan plan;
  EXPECT_OK(ParseTextProto(
      "layer { key { bits: 3 group_size: 32 } value { bits: 4 group_size: 32 } "
      "} layer { key { bits: 16 } value { bits: 2 group_size: 64 } }",
      "test", plan));
  return plan;
}

TEST(PlanFormatsTest, KvTunerYamlComesBackAsManualBits) {
  ASSERT_OK_AND_ASSIGN(const std::string yaml, KvTunerYaml(Plan()));
  EXPECT_EQ(yaml,
            "0:\n  nbits_key: 3\n  nbits_value: 4\n1:\n  nbits_key: 16\n  "
            "nbits_value: 2\n");
  ASSERT_OK_AND_ASSIGN(const ManualOptions options, ParseKvTunerYaml(yaml));
  ASSERT_EQ(options.entry_size(), 2);
  EXPECT_EQ(options.entry(1).layers(), "1");
  EXPECT_EQ(options.entry(1).bits().key_bits(), 16);
  EXPECT_EQ(options.entry(1).bits().value_bits(), 2);
}

TEST(PlanFormatsTest, WrongYamlIsRefusedByLine) {
  EXPECT_THAT(ParseKvTunerYaml("0:\n  nbits_key: 9\n"),
              StatusIs(kInvalid, HasSubstr("line 2: \"9\" is not 1 to 8")));
  EXPECT_THAT(ParseKvTunerYaml("  nbits_key: 2\n"),
              StatusIs(kInvalid, HasSubstr("before the first layer")));
  EXPECT_THAT(ParseKvTunerYaml("0:\n  nbits_key: 2\n"),
              StatusIs(kInvalid, HasSubstr("layer 0 has no nbits_value")));
  EXPECT_THAT(ParseKvTunerYaml("1:\n  nbits_key: 2\n  nbits_value: 2\n"),
              StatusIs(kInvalid, HasSubstr("layer 0 is missing")));
  EXPECT_THAT(ParseKvTunerYaml("0:\n0:\n"),
              StatusIs(kInvalid, HasSubstr("line 2: layer 0 stands twice")));
  EXPECT_THAT(ParseKvTunerYaml("# none\n"),
              StatusIs(kInvalid, HasSubstr("names no layer")));
}

TEST(PlanFormatsTest, JsonAndTypes) {
  EXPECT_EQ(*TypeLists(Plan()), "key: q3 f16\nvalue: q4 q2\n");
  const auto json = PlanJson(Plan());
  EXPECT_EQ(json["layers"][0]["key"]["bits"], 3);
  EXPECT_EQ(json["layers"][1]["value"]["group_size"], 64);
}

// Bits of a mean would be another plan.
TEST(PlanFormatsTest, KvHeadsApartAreInTheJsonAlone) {
  CachePlan plan = Plan();
  LayerPlan& layer = *plan.mutable_layer(1);
  *layer.add_value_head() = layer.value();
  *layer.add_value_head() = plan.layer(0).value();
  layer.clear_value();
  EXPECT_EQ(PlanJson(plan)["layers"][1]["value"][0]["bits"], 2);
  EXPECT_EQ(PlanJson(plan)["layers"][1]["value"][1]["bits"], 4);
  EXPECT_EQ(PlanJson(plan)["layers"][1]["key"]["bits"], 16);
  for (const absl::Status& status :
       {KvTunerYaml(plan).status(), TypeLists(plan).status()}) {
    EXPECT_THAT(status, StatusIs(kInvalid, AllOf(HasSubstr("layer 1 values"),
                                                 HasSubstr("--to=json"))));
  }
}

TEST(LmEvalJsonTest, ScoresStandUnderTheNamesOfTheHarness) {
  RunRecord record;
  ASSERT_OK(ParseTextProto(
      "model { path: \"m\" } method { name: \"A\" dataset { name: \"gsm\" task "
      "{ metric: \"exact match\" samples: 4 score: 0.5 score_stderr: 0.25 } } "
      "dataset { name: \"wiki\" quality { windows: 3 word_perplexity: 8 } } }",
      "test", record));
  ASSERT_OK_AND_ASSIGN(const auto json, LmEvalJson(record, "A"));
  EXPECT_EQ(json["results"]["gsm"]["exact_match,none"], 0.5);
  EXPECT_EQ(json["results"]["gsm"]["exact_match_stderr,none"], 0.25);
  EXPECT_EQ(json["n-samples"]["gsm"]["effective"], 4);
  EXPECT_EQ(json["results"]["wiki"]["word_perplexity,none"], 8);
  EXPECT_THAT(LmEvalJson(record, "B"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("it has A")));
}

}  // namespace
}  // namespace kvmix
