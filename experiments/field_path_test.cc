#include "experiments/field_path.h"

#include "experiments/experiment.pb.h"
#include "experiments/text_proto.h"
#include "kvmix/allocation/top_fraction.pb.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

ExperimentConfig TwoMethods() {
  ExperimentConfig config;
  EXPECT_OK(ParseTextProto(
      R"(
    name: "x"
    dataset { path: "a.txt" }
    method { name: "first" bit_allocator { name: "top_fraction" } }
    method {
      name: "second"
      bit_allocator {
        name: "top_fraction"
        options {
          [type.googleapis.com/kvmix.TopFractionOptions] {
            high_fraction: 0.5 keys { high: 4 }
          }
        }
      }
    })",
      "test", config));
  return config;
}

TopFractionOptions OptionsOf(const Method& method) {
  TopFractionOptions options;
  EXPECT_TRUE(method.bit_allocator().options().UnpackTo(&options));
  return options;
}

TEST(FieldPathTest, SetsScalarsOfAllKinds) {
  ExperimentConfig config;
  EXPECT_OK(ApplyOverride("seed=17", config));
  EXPECT_OK(ApplyOverride("name=a=b c", config));
  EXPECT_OK(ApplyOverride("evaluation.mode=STEPWISE", config));
  EXPECT_OK(ApplyOverride("speed.skip=true", config));
  EXPECT_EQ(config.seed(), 17u);
  EXPECT_EQ(config.name(), "a=b c");
  EXPECT_EQ(config.evaluation().mode(), Evaluation::STEPWISE);
  EXPECT_TRUE(config.speed().skip());
}

TEST(FieldPathTest, ReachesThroughAnyAndKeepsItsOtherFields) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(ApplyOverride("method[1].bit_allocator.options.high_fraction=0.3",
                          config));
  EXPECT_EQ(OptionsOf(config.method(1)).high_fraction(), 0.3);
  EXPECT_EQ(OptionsOf(config.method(1)).keys().high(), 4);
}

TEST(FieldPathTest, OptionsThatAreNotThereStartAsTheComponentsDefaults) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(
      ApplyOverride("method[0].bit_allocator.options.values.high=8", config));
  EXPECT_EQ(OptionsOf(config.method(0)).values().high(), 8);
}

// Merging would keep the bytes of the old options.
TEST(FieldPathTest, AComponentIsReplacedWhole) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(
      ApplyOverride("method[1].bit_allocator={ name: 'top_fraction' "
                    "options { [type.googleapis.com/"
                    "kvmix.TopFractionOptions] {} } }",
                    config));
  EXPECT_FALSE(OptionsOf(config.method(1)).has_high_fraction());
  EXPECT_OK(ApplyOverride("method[1].bit_allocator=uniform", config));
  EXPECT_EQ(config.method(1).bit_allocator().name(), "uniform");
  EXPECT_FALSE(config.method(1).bit_allocator().has_options());
}

TEST(FieldPathTest, IndexMayBeLeftOutForASingleElement) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(ApplyOverride("dataset.path=b.txt", config));
  EXPECT_EQ(config.dataset(0).path(), "b.txt");
  EXPECT_THAT(
      ApplyOverride("method.name=x", config),
      StatusIs(kInvalid, HasSubstr("method has 2 elements; say which")));
}

TEST(FieldPathTest, IndexAtTheEndAppends) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(ApplyOverride("method[2]={ name: 'third' }", config));
  EXPECT_EQ(config.method(2).name(), "third");
  EXPECT_THAT(ApplyOverride("method[4].name=x", config),
              StatusIs(kInvalid, HasSubstr("method[4] does not exist")));
}

TEST(FieldPathTest, AListReplacesAllElements) {
  ExperimentConfig config = TwoMethods();
  EXPECT_OK(ApplyOverride(R"(method=[{ name: "third" }])", config));
  ASSERT_EQ(config.method_size(), 1);
  EXPECT_EQ(config.method(0).name(), "third");
  EXPECT_OK(ApplyOverride(R"(dataset=[{ path: "b" }, { path: "c" }])", config));
  ASSERT_EQ(config.dataset_size(), 2);
  EXPECT_EQ(config.dataset(1).path(), "c");
  EXPECT_OK(ApplyOverride("dataset=[]", config));
  EXPECT_EQ(config.dataset_size(), 0);
  EXPECT_THAT(ApplyOverride(R"(method=[{ nome: "x" }])", config),
              StatusIs(kInvalid, HasSubstr("nome")));
  EXPECT_EQ(config.method(0).name(), "third");  // as it was
}

TEST(FieldPathTest, ErrorsNameThePartThatDoesNotFit) {
  ExperimentConfig config = TwoMethods();
  EXPECT_THAT(ApplyOverride("seed", config),
              StatusIs(kInvalid, HasSubstr("--set takes path=value")));
  EXPECT_THAT(
      ApplyOverride("sead=1", config),
      StatusIs(kInvalid, HasSubstr("kvmix.ExperimentConfig has no field "
                                   "\"sead\"; its fields: name, seed")));
  EXPECT_THAT(
      ApplyOverride("method[1].bit_allocator.options.high=1", config),
      StatusIs(kInvalid,
               HasSubstr("kvmix.TopFractionOptions has no field \"high\"")));
  EXPECT_THAT(ApplyOverride("seed=x", config),
              StatusIs(kInvalid, HasSubstr("seed")));
  EXPECT_THAT(ApplyOverride("evaluation.mode=SLOW", config),
              StatusIs(kInvalid, HasSubstr("SLOW")));
  EXPECT_THAT(ApplyOverride("seed.x=1", config),
              StatusIs(kInvalid, HasSubstr("seed is no message")));
  EXPECT_THAT(ApplyOverride("seed[0]=1", config),
              StatusIs(kInvalid, HasSubstr("takes no index")));
  EXPECT_THAT(ApplyOverride("method[x].name=1", config),
              StatusIs(kInvalid, HasSubstr("is not a field or field[index]")));
  EXPECT_THAT(ApplyOverride("method[0]..name=1", config),
              StatusIs(kInvalid, HasSubstr("empty field name")));
  EXPECT_THAT(ApplyOverride("model={ path: 'x'", config),
              StatusIs(kInvalid, HasSubstr("not closed")));
  EXPECT_THAT(ApplyOverride("method[0].eviction_policy.options.x=1", config),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("keep_all")));
}

}  // namespace
}  // namespace kvmix
