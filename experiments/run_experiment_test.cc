#include "experiments/run_experiment.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "experiments/config.h"
#include "experiments/report.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/status_matchers.h"
#include "quant/channel_levels.pb.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;
using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::SmallExperiment;
using ::kvmix::testing::StatusIs;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr char kConfig[] = R"(
dataset { name: "stories" synthetic { task: "story" documents: 2 tokens: 150 } }
dataset {
  name: "recall"
  synthetic { task: "recall" documents: 2 tokens: 150 facts: 6 questions: 3 }
}
speed { prompt_tokens: 8 decode_tokens: 2 rounds: 1 }
recency_policy { name: "pivotal_context" }
method { name: "KVmix" bit_allocator { name: "top_fraction" } }
method {
  name: "random"
  importance_estimator { name: "random" }
  bit_allocator { name: "top_fraction" }
}
)";

class RunExperimentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    output_ = EmptyFolder(absl::StrCat(
        "run_",
        ::testing::UnitTest::GetInstance()->current_test_info()->name()));
    ASSERT_OK_AND_ASSIGN(config_, SmallExperiment(kConfig));
    config_.set_output(output_);
    ASSERT_OK(ResolveConfig(config_));
  }

  static std::string RecordText(const ExperimentResult& result) {
    return PrintTextProto(result.record);
  }

  std::string output_;
  ExperimentConfig config_;
};

// Queries seen on the prompts reach the formats of every layer, each its own.
TEST_F(RunExperimentTest, FormatsAreCalibratedByTheQueriesOfTheirLayer) {
  ASSERT_OK_AND_ASSIGN(config_, SmallExperiment(R"(
    dataset { synthetic { task: "story" documents: 1 tokens: 200 } }
    speed { skip: true }
    method {
      name: "calibrated"
      importance_estimator { name: "quantization_error" }
      bit_allocator { name: "knapsack" }
      budget { effective_bits: 3.5 }
      candidate { bits: 2 sides: KEYS quantizer { name: "channel_levels" } }
      candidate { bits: 3 sides: KEYS quantizer { name: "channel_levels" } }
      candidate { bits: 3 sides: VALUES quantizer { name: "turbo" } }
    })"));
  config_.set_output(output_);
  ASSERT_OK(ResolveConfig(config_));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult result, RunExperiment(config_));
  const CachePlan& plan = result.record.method(1).plan();
  ChannelLevelsFormat first, second;
  ASSERT_TRUE(plan.layer(0).key().options().UnpackTo(&first));
  ASSERT_TRUE(plan.layer(1).key().options().UnpackTo(&second));
  double sum = 0;
  for (const float w : first.weight()) sum += w;
  EXPECT_NEAR(sum / first.weight_size(), 1, 1e-4);
  EXPECT_NE(first.DebugString(), second.DebugString());
}

TEST_F(RunExperimentTest, WritesEverythingThatTheReportPromises) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult result, RunExperiment(config_));
  for (const char* name :
       {"config.textproto", "plan_FP16.textproto", "plan_KVmix.textproto",
        "record.textproto", "timings.textproto", "metrics.json", "table.md",
        "table.csv", "figure.svg"})
    EXPECT_TRUE(fs::exists(result.folder + "/" + name)) << name;
  ASSERT_OK_AND_ASSIGN(const std::string text,
                       ReadFile(result.folder + "/metrics.json"));
  const auto json = nlohmann::json::parse(text);
  ASSERT_EQ(json["rows"].size(), 3u);
  const auto& row = json["rows"][1];
  EXPECT_EQ(row["method"], "KVmix");
  for (const char* name :
       {"perplexity", "perplexity_stderr", "word_perplexity", "kl_mean",
        "kl_stderr", "kl_p99", "top1_agreement", "tokens"})
    EXPECT_TRUE(row["quality"][name].is_number()) << name;
  for (const char* name :
       {"key_effective_bits", "value_effective_bits", "key_nominal_bits",
        "value_nominal_bits", "bytes", "compression"})
    EXPECT_TRUE(row["memory"][name].is_number()) << name;
  EXPECT_GT(row["speed"]["prefill_tokens_per_second"], 0);
  EXPECT_GT(row["speed"]["decode_tokens_per_second"], 0);
  EXPECT_GT(row["quality"]["perplexity"], 1);
  EXPECT_GT(row["memory"]["compression"], 2);
  EXPECT_EQ(row["quality"]["tokens"], 300);
  EXPECT_EQ(row["more_datasets"][0]["dataset"], "recall");
  EXPECT_EQ(row["more_datasets"][0]["quality"]["answers"]["answers"], 6);
  for (const char* name : {"config", "fingerprint", "seed", "build", "machine"})
    EXPECT_TRUE(json.contains(name)) << name;
  // The resolved config can be run again and means the same.
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig again,
                       LoadConfig(result.folder + "/config.textproto", {}));
  EXPECT_EQ(ConfigText(again), ConfigText(config_));
}

TEST_F(RunExperimentTest, TheRecordDoesNotDependOnThreads) {
  config_.set_threads(1);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult one, RunExperiment(config_));
  config_.set_threads(3);
  config_.set_output(output_ + "_3");
  fs::remove_all(config_.output());
  ASSERT_OK_AND_ASSIGN(const ExperimentResult three, RunExperiment(config_));
  EXPECT_EQ(RecordText(one), RecordText(three));
  EXPECT_EQ(three.timings.threads(), 3);
}

TEST_F(RunExperimentTest, AnInterruptedRunGoesOnToTheSameRecord) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult whole, RunExperiment(config_));
  EXPECT_EQ(whole.timings.evaluated_windows(), 4);
  // As if it had been stopped after two windows, one of them half written.
  fs::remove(whole.folder + "/windows/1_00000.pb");
  ASSERT_OK(WriteFileAtomically(whole.folder + "/windows/1_00001.pb", "\x08"));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult resumed, RunExperiment(config_));
  EXPECT_EQ(resumed.timings.evaluated_windows(), 2);
  EXPECT_EQ(RecordText(resumed), RecordText(whole));
}

TEST_F(RunExperimentTest, CtrlCSaysHowToGoOn) {
  config_.mutable_method()->DeleteSubrange(1, 2);  // no profile to interrupt
  const std::atomic<bool> stop = true;
  EXPECT_THAT(RunExperiment(config_, &stop),
              StatusIs(absl::StatusCode::kCancelled,
                       HasSubstr("the same command goes on from there")));
}

TEST_F(RunExperimentTest, AProfileIsMadeOnceForAllAllocators) {
  ASSERT_OK(RunExperiment(config_).status());
  const std::string profiles = output_ + "/profiles";
  const auto count = [&] {
    return std::distance(fs::directory_iterator(profiles),
                         fs::directory_iterator());
  };
  EXPECT_EQ(count(), 2);  // gradient_norm and random
  Component& allocator = *config_.mutable_method(1)->mutable_bit_allocator();
  ASSERT_OK(ParseTextProto(
      R"(name: "top_fraction" options {
           [type.googleapis.com/kvmix.TopFractionOptions] { high_fraction: 0.5 }
         })",
      "test", allocator));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult other, RunExperiment(config_));
  EXPECT_EQ(count(), 2);
  EXPECT_EQ(other.record.method(1).key_nominal_bits(), 2.5);

  // Also for experiments that keep their results elsewhere.
  config_.set_output(EmptyFolder("run_elsewhere"));
  config_.mutable_profile()->set_folder(profiles);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult third, RunExperiment(config_));
  EXPECT_EQ(count(), 2);
  EXPECT_FALSE(fs::exists(config_.output() + "/profiles"));
  EXPECT_EQ(third.record.fingerprint(), other.record.fingerprint());
}

// The embedded model has one KV head: what is measured of it is measured of its
// layer, under another key, and the plans are the same.
TEST_F(RunExperimentTest, TheOnlyKvHeadGetsWhatItsLayerGets) {
  ASSERT_OK_AND_ASSIGN(config_, SmallExperiment(R"(
    dataset { synthetic { task: "story" documents: 1 tokens: 130 } }
    speed { skip: true }
    method {
      name: "heads"
      importance_estimator { name: "isolated_kl" }
      bit_allocator { name: "knapsack" }
      budget { effective_bits: 3.5 }
      candidate { bits: 2 }
      candidate { bits: 4 }
      granularity: HEAD
    })"));
  config_.set_output(output_);
  config_.mutable_profile()->set_num_prompts(1);
  config_.mutable_profile()->set_prompt_tokens(70);
  Method& layers = *config_.add_method();
  layers = config_.method(1);
  layers.set_name("layers");
  layers.clear_granularity();
  ASSERT_OK(ResolveConfig(config_));
  ASSERT_OK_AND_ASSIGN(LoadedModel model, LoadModel(config_.model(), 2));
  ASSERT_OK_AND_ASSIGN(const PreparedMethods prepared,
                       PrepareMethods(config_, model));
  ASSERT_EQ(prepared.profiles.size(), 2);
  EXPECT_NE(prepared.profiles[0].key(), prepared.profiles[1].key());
  for (const LayerImportance& layer : prepared.ProfileOf(1)->layer()) {
    EXPECT_THAT(layer.key_head_loss(), ElementsAreArray(layer.key_loss()));
    EXPECT_THAT(layer.value_head_loss(), ElementsAreArray(layer.value_loss()));
  }
  for (const LayerImportance& layer : prepared.ProfileOf(2)->layer())
    EXPECT_EQ(layer.key_head_loss_size(), 0);
  EXPECT_EQ(PrintTextProto(prepared.methods[1].plan),
            PrintTextProto(prepared.methods[2].plan));
}

// Whatever the threads: the search sees the same losses and takes the same way.
TEST_F(RunExperimentTest, PlansThatAreMeasuredAreRunOnceAndKept) {
  Method& method = *config_.mutable_method(1);
  method.mutable_importance_estimator()->set_name("quantization_error");
  method.mutable_recency_policy()->set_name("none");
  method.mutable_budget()->set_effective_bits(4);
  ASSERT_OK(ParseTextProto(
      R"(name: "pareto_search" options {
           [type.googleapis.com/kvmix.ParetoSearchOptions] {
             loss: KL_DIVERGENCE population: 8 generations: 3
           }
         })",
      "test", *method.mutable_bit_allocator()));
  ASSERT_OK(ResolveConfig(config_));
  const auto losses = [&] {
    const fs::path folder = output_ + "/plan_losses";
    EXPECT_EQ(
        std::distance(fs::directory_iterator(folder), fs::directory_iterator()),
        1);
    StoredPlanLosses stored;
    EXPECT_OK(ReadTextProto(fs::directory_iterator(folder)->path(), stored));
    return stored;
  };
  config_.set_threads(1);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult one, RunExperiment(config_));
  const StoredPlanLosses first = losses();
  EXPECT_GT(first.plan_size(), 8);
  EXPECT_LE(first.plan_size(), 8 * 4);
  fs::remove_all(output_);
  config_.set_threads(3);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult three, RunExperiment(config_));
  EXPECT_EQ(PrintTextProto(losses()), PrintTextProto(first));
  EXPECT_EQ(PrintTextProto(three.record.method(1).plan()),
            PrintTextProto(one.record.method(1).plan()));
  // What is kept is believed: with all losses but one plan's raised, it is
  // taken.
  StoredPlanLosses raised = first;
  for (auto& [plan, loss] : *raised.mutable_plan())
    loss.set_kl_divergence(loss.kl_divergence() + 100);
  const std::string path =
      absl::StrCat(output_, "/plan_losses/", first.key(), ".textproto");
  raised.mutable_plan()->begin()->second.set_kl_divergence(-1);
  ASSERT_OK(WriteTextProto(raised, path));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult misled, RunExperiment(config_));
  EXPECT_EQ(Fingerprint(misled.record.method(1).plan().SerializeAsString()),
            raised.plan().begin()->first);
}

TEST_F(RunExperimentTest, APlanCanBeRunAsItIs) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult result, RunExperiment(config_));
  Method& method = *config_.mutable_method(1);
  method.clear_bit_allocator();
  method.clear_importance_estimator();
  method.set_plan_file(result.folder + "/plan_KVmix.textproto");
  ASSERT_OK(ResolveConfig(config_));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult again, RunExperiment(config_));
  EXPECT_EQ(PrintTextProto(again.record.method(1).dataset(0)),
            PrintTextProto(result.record.method(1).dataset(0)));
}

TEST_F(RunExperimentTest, TheRecordNamesHowTheModelComputed) {
  config_.mutable_model()->set_attention_arithmetic(AttentionConfig::INT8);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult result, RunExperiment(config_));
  EXPECT_EQ(result.record.model().compute(), "FLOAT32");
  EXPECT_EQ(result.record.model().attention_arithmetic(), "INT8");
  ASSERT_OK_AND_ASSIGN(const std::string metrics,
                       ReadFile(result.folder + "/metrics.json"));
  const auto json = nlohmann::json::parse(metrics);
  EXPECT_EQ(json["model"]["attention_arithmetic"], "INT8");
  EXPECT_EQ(json["rows"][0]["attention_kernels"], "half");
  EXPECT_EQ(json["rows"][1]["attention_kernels"], "int8");
}

TEST_F(RunExperimentTest, TheFirstMethodMustBeFullPrecision) {
  config_.mutable_method()->SwapElements(0, 1);
  EXPECT_THAT(RunExperiment(config_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("method[0] (KVmix) has fewer than 16 bits")));
}

TEST_F(RunExperimentTest, AMissingModelIsNamed) {
  config_.mutable_model()->set_path("no/such/model");
  EXPECT_THAT(RunExperiment(config_), StatusIs(absl::StatusCode::kNotFound,
                                               HasSubstr("no/such/model")));
  setenv("KVMIX_CACHE", "/nowhere", 1);
  config_.mutable_model()->set_path("smollm2");
  EXPECT_THAT(RunExperiment(config_),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("tools/fetch_smollm2.sh")));
}

TEST_F(RunExperimentTest, AnOutputThatCannotBeWrittenIsAnError) {
  ASSERT_OK(WriteFileAtomically(output_ + "_file", "x"));
  config_.set_output(output_ + "_file");  // a file where a folder must be
  EXPECT_THAT(RunExperiment(config_).status().ToString(),
              HasSubstr(output_ + "_file"));
}

TEST_F(RunExperimentTest, APlanOfAnotherModelIsRefused) {
  Method& method = *config_.mutable_method(1);
  method.clear_bit_allocator();
  method.clear_importance_estimator();
  LayerPlan& layer = *method.mutable_plan()->add_layer();
  layer.mutable_key()->set_bits(16);
  layer.mutable_value()->set_bits(16);
  EXPECT_THAT(RunExperiment(config_).status().ToString(), HasSubstr("KVmix"));
}

TEST_F(RunExperimentTest, SpeedMustFitTheContext) {
  config_.mutable_speed()->set_prompt_tokens(5000);
  EXPECT_THAT(RunExperiment(config_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("speed.prompt_tokens 5000")));
}

}  // namespace
}  // namespace kvmix
