#include "experiments/config.h"

#include <string>

#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

constexpr char kConfig[] = R"(name: "small"
model { path: "embedded" }
dataset { synthetic { task: "story" } }
importance_estimator { name: "random" }
quantizer { name: "group_affine" }
recency_policy { name: "none" }
eviction_policy { name: "keep_all" }
bit_allocator { name: "uniform" }
method { name: "one" }
method { name: "two" bit_allocator { name: "top_fraction" } }
)";

std::string WriteConfig(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/config.textproto";
  EXPECT_OK(WriteFileAtomically(path, text));
  return path;
}

absl::Status LoadWith(std::vector<std::string> overrides) {
  return LoadConfig(WriteConfig(kConfig), overrides).status();
}

TEST(ConfigTest, FillsInDefaultsAndCommonComponents) {
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig config,
                       LoadConfig(WriteConfig(kConfig), {}));
  EXPECT_EQ(config.output(), "out");
  EXPECT_EQ(config.evaluation().chunk_tokens(), 128);
  EXPECT_EQ(config.profile().num_prompts(), 30);
  EXPECT_EQ(config.dataset(0).name(), "story");
  EXPECT_EQ(config.dataset(0).synthetic().questions(), 0);
  EXPECT_EQ(config.method(0).quantizer().name(), "group_affine");
  EXPECT_EQ(config.method(0).bit_allocator().name(), "uniform");
  // "uniform" looks at no scores.
  EXPECT_FALSE(config.method(0).has_importance_estimator());
  EXPECT_EQ(config.method(1).importance_estimator().name(), "random");
}

// Writes a file beside the others of the test; its path.
std::string WriteTo(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/include/" + name;
  EXPECT_OK(WriteFileAtomically(path, text));
  return path;
}

TEST(ConfigTest, AnIncludeGivesRowsFirstAndFieldsUnlessSet) {
  WriteTo("shared/rows.textproto", R"(
      seed: 5
      quantizer { name: "group_affine" options {
        [type.googleapis.com/kvmix.GroupAffineOptions] { key { group_size: 64 } } } }
      recency_policy { name: "pivotal_context" }
      eviction_policy { name: "keep_all" }
      bit_allocator { name: "uniform" }
      method { name: "one" })");
  const std::string path = WriteTo("own.textproto", R"(
      name: "own"
      include: "shared/rows.textproto"
      model { path: "embedded" }
      dataset { synthetic { task: "story" } }
      quantizer { name: "group_affine" }
      method { name: "two" })");
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig config, LoadConfig(path, {}));
  EXPECT_EQ(config.seed(), 5u);
  EXPECT_EQ(config.include_size(), 0);
  ASSERT_EQ(config.method_size(), 2);
  EXPECT_EQ(config.method(0).name(), "one");
  EXPECT_EQ(config.method(1).recency_policy().name(), "pivotal_context");
  // Replaced as a whole: nothing is left of the included options.
  EXPECT_FALSE(config.method(0).quantizer().has_options());
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig changed,
                       LoadConfig(path, {"method[1].bit_allocator=top_fraction",
                                         "importance_estimator=random"}));
  EXPECT_EQ(changed.method(1).bit_allocator().name(), "top_fraction");
}

TEST(ConfigTest, IncludesThatCannotBeReadAreErrors) {
  EXPECT_THAT(LoadConfig(WriteTo("a", "include: \"nowhere\""), {}).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nowhere")));
  EXPECT_THAT(LoadConfig(WriteTo("b", "include: \"b\""), {}).status(),
              StatusIs(kInvalid, HasSubstr("is it a circle?")));
  WriteTo("c", "seeds: 1");
  EXPECT_THAT(LoadConfig(WriteTo("d", "include: \"c\""), {}).status(),
              StatusIs(kInvalid, HasSubstr("/c:1:")));
}

TEST(ConfigTest, ResolvingTwiceChangesNothing) {
  ASSERT_OK_AND_ASSIGN(ExperimentConfig config,
                       LoadConfig(WriteConfig(kConfig), {}));
  const std::string once = PrintTextProto(config);
  ASSERT_OK(ResolveConfig(config));
  EXPECT_EQ(PrintTextProto(config), once);
}

TEST(ConfigTest, TextLeavesOutWhatChangesNoResult) {
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig a,
                       LoadConfig(WriteConfig(kConfig), {}));
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig b,
      LoadConfig(WriteConfig(kConfig),
                 {"threads=2", "output=elsewhere", "speed.rounds=9",
                  "profile.folder=elsewhere"}));
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig c,
                       LoadConfig(WriteConfig(kConfig), {"seed=2"}));
  EXPECT_EQ(ConfigText(a), ConfigText(b));
  EXPECT_NE(ConfigText(a), ConfigText(c));
}

TEST(ConfigTest, ParseErrorsSayWhere) {
  const std::string path = WriteConfig("name: \"x\"\nmodle { path: \"y\" }\n");
  EXPECT_THAT(
      LoadConfig(path, {}),
      StatusIs(kInvalid, HasSubstr(path + ":2:7: Message type "
                                          "\"kvmix.ExperimentConfig\" has no "
                                          "field named \"modle\"")));
  EXPECT_THAT(LoadConfig(WriteConfig("quantizer { name: \"q\" options { "
                                     "[type.googleapis.com/kvmix.Nothing] {} "
                                     "} }"),
                         {}),
              StatusIs(kInvalid,
                       HasSubstr("its target is not linked into this binary")));
  EXPECT_THAT(LoadConfig("no/such/file.textproto", {}),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("file.textproto does not exist")));
}

TEST(ConfigTest, UnknownComponentsListTheLinkedOnes) {
  EXPECT_THAT(LoadWith({"method[1].bit_allocator=best"}),
              StatusIs(absl::StatusCode::kNotFound,
                       ::testing::AllOf(HasSubstr("method[1] (two)"),
                                        HasSubstr("bit_allocator \"best\""),
                                        HasSubstr("top_fraction"))));
  EXPECT_THAT(LoadWith({"quantizer=float"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("group_affine")));
}

TEST(ConfigTest, OptionsOfAnotherComponentAreRefused) {
  EXPECT_THAT(
      LoadWith({"method[1].bit_allocator={ name: 'top_fraction' options { "
                "[type.googleapis.com/kvmix.UniformOptions] {} } }"}),
      StatusIs(kInvalid, HasSubstr("kvmix.TopFractionOptions")));
}

TEST(ConfigTest, ErrorsNameTheField) {
  EXPECT_THAT(LoadWith({"name=a/b"}), StatusIs(kInvalid, HasSubstr("name is")));
  EXPECT_THAT(LoadWith({"name=.."}), StatusIs(kInvalid, HasSubstr("name is")));
  EXPECT_THAT(LoadWith({"model.path="}),
              StatusIs(kInvalid, HasSubstr("model.path is empty")));
  EXPECT_THAT(
      LoadWith({"dataset.path=x"}),
      StatusIs(kInvalid, HasSubstr("dataset[0] must have exactly one")));
  EXPECT_THAT(LoadWith({"dataset={ path: 'x' context_length: 1 }"}),
              StatusIs(kInvalid, HasSubstr("dataset[0].context_length is 1")));
  EXPECT_THAT(LoadWith({"dataset={ path: 'x' max_tokens: -1 }"}),
              StatusIs(kInvalid, HasSubstr("dataset[0].max_tokens is -1")));
  EXPECT_THAT(LoadWith({"evaluation.chunk_tokens=-5"}),
              StatusIs(kInvalid, HasSubstr("evaluation.chunk_tokens is -5")));
  // A number that is none of the enum's never comes through --set, but may
  // stand in a file.
  ExperimentConfig config;
  ASSERT_OK(ParseTextProto(kConfig, "test", config));
  config.mutable_model()->set_compute(static_cast<ModelSource::Compute>(99));
  EXPECT_THAT(ResolveConfig(config),
              StatusIs(kInvalid, HasSubstr("model.compute is 99")));
  config.mutable_model()->clear_compute();
  config.mutable_model()->set_attention_arithmetic(
      static_cast<AttentionConfig::Arithmetic>(7));
  EXPECT_THAT(ResolveConfig(config),
              StatusIs(kInvalid, HasSubstr("model.attention_arithmetic is 7")));
  EXPECT_THAT(LoadWith({"profile.num_prompts=-1"}),
              StatusIs(kInvalid, HasSubstr("profile.num_prompts is -1")));
  EXPECT_THAT(LoadWith({"speed.rounds=-1"}),
              StatusIs(kInvalid, HasSubstr("speed.rounds is -1")));
  EXPECT_THAT(LoadWith({"threads=-2"}),
              StatusIs(kInvalid, HasSubstr("threads is -2")));
  EXPECT_THAT(LoadWith({"method[1].name=one"}),
              StatusIs(kInvalid, HasSubstr("method[1].name is \"one\"")));
  EXPECT_THAT(LoadWith({"method[1].plan={ layer {} }"}),
              StatusIs(kInvalid, HasSubstr("has a plan")));
  EXPECT_THAT(LoadWith({"method[1]={ name: 'x' granularity: HEAD plan { layer "
                        "{} } }"}),
              StatusIs(kInvalid, HasSubstr("granularity would do nothing")));
}

TEST(ConfigTest, FullPrecisionIsTheConfigsUnlessTheMethodOrItsPlanSays) {
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig config,
      LoadConfig(WriteConfig(kConfig), {"full_precision=BFLOAT16",
                                        "method[1].full_precision=FLOAT"}));
  EXPECT_EQ(config.method(0).full_precision(), CachePlan::BFLOAT16);
  EXPECT_EQ(config.method(1).full_precision(), CachePlan::FLOAT);
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig with_plan,
      LoadConfig(WriteConfig(kConfig),
                 {"full_precision=FLOAT",
                  "method[1]={ name: 'x' plan { layer {} } }"}));
  EXPECT_FALSE(with_plan.method(1).has_full_precision());
  EXPECT_THAT(LoadWith({"method[1]={ name: 'x' full_precision: FLOAT plan { "
                        "layer {} } }"}),
              StatusIs(kInvalid, HasSubstr("full_precision would do nothing")));
  ExperimentConfig invalid;
  ASSERT_OK(ParseTextProto(kConfig, "test", invalid));
  invalid.set_full_precision(static_cast<CachePlan::FullPrecision>(9));
  EXPECT_THAT(ResolveConfig(invalid),
              StatusIs(kInvalid, HasSubstr("full_precision is 9")));
}

TEST(ConfigTest, APresetFillsWhatIsLeftOpen) {
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig config,
      LoadConfig(WriteConfig(kConfig),
                 {"method[1]={ preset: 'kivi' quantizer { name: 'turbo' } }"}));
  const Method& method = config.method(1);
  EXPECT_EQ(method.name(), "kivi");
  EXPECT_EQ(method.preset(), "");
  EXPECT_EQ(method.bit_allocator().name(), "uniform");
  EXPECT_EQ(method.quantizer().name(), "turbo");
  EXPECT_EQ(method.recency_policy().name(), "residual_window");
  EXPECT_THAT(LoadWith({"method[1]={ preset: 'nowhere' }"}),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("method[1]: experiments/presets/nowhere")));
  EXPECT_THAT(LoadWith({"method[1]={ preset: '../kivi' }"}),
              StatusIs(kInvalid, HasSubstr("preset is")));
}

TEST(ConfigTest, APlanFileBecomesTheMethodsPlan) {
  const std::string plan = ::testing::TempDir() + "/plan.textproto";
  ASSERT_OK(WriteFileAtomically(plan, "layer { key { bits: 16 } }"));
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig config,
      LoadConfig(WriteConfig(kConfig),
                 {"method[1]={ name: 'mine' plan_file: '" + plan + "' }"}));
  EXPECT_EQ(config.method(1).plan().layer(0).key().bits(), 16);
  EXPECT_EQ(config.method(1).plan_file(), "");
  EXPECT_THAT(LoadWith({"method[1]={ name: 'mine' plan_file: 'nowhere' }"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nowhere")));
}

}  // namespace
}  // namespace kvmix
