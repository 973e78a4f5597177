#include "experiments/evaluate.h"

#include <cmath>

#include "attention/attention.h"
#include "experiments/loaded_model.h"
#include "experiments/metrics.h"
#include "experiments/observe_prompts.h"
#include "experiments/offered_formats.h"
#include "experiments/stages.h"
#include "experiments/text_proto.h"
#include "experiments/trial_plans.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"
#include "kvmix/importance/importance_estimator.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The embedded model on a short document, full precision and KVmix at 2 bits.
class EvaluateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ModelSource source;
    source.set_path("embedded");
    ASSERT_OK_AND_ASSIGN(model_, LoadModel(source, 2));
    Dataset dataset;
    ASSERT_OK(ParseTextProto(
        R"(name: "recall" synthetic { task: "recall" documents: 1 tokens: 150
           facts: 6 questions: 3 confusable: 1 copy_length: 12 hops: 2 })",
        "test", dataset));
    ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                         LoadWindows(dataset, 1, *model_.tokenizer, 4096));
    window_ = windows[0];
    const CacheShape shape = model_.transformer->cache_shape();
    ASSERT_OK_AND_ASSIGN(const RunnableMethod full, FullPrecision(shape));
    Method method;
    ASSERT_OK(ParseTextProto(
        R"(name: "2bit" bit_allocator { name: "uniform" }
           quantizer { name: "group_affine" }
           recency_policy { name: "pivotal_context" }
           eviction_policy { name: "keep_all" })",
        "test", method));
    ASSERT_OK_AND_ASSIGN(
        const RunnableMethod two_bit,
        Allocate(method, ImportanceProfile(), shape, Evaluation(), 1));
    methods_ = {full, two_bit};
  }

  WindowRecord Evaluate(const Evaluation& evaluation, int num_threads = 2) {
    ThreadPool threads(num_threads);
    absl::StatusOr<WindowRecord> record =
        EvaluateWindow({.cpu = model_.transformer.get()}, methods_, window_,
                       evaluation, threads);
    EXPECT_OK(record.status());
    return record.ok() ? *record : WindowRecord();
  }

  LoadedModel model_;
  Window window_;
  std::vector<RunnableMethod> methods_;
};

Evaluation Chunked(int chunk_tokens) {
  Evaluation evaluation;
  evaluation.set_chunk_tokens(chunk_tokens);
  return evaluation;
}

Evaluation WithMode(Evaluation::Mode mode, int prefill_tokens = 0) {
  Evaluation evaluation;
  evaluation.set_mode(mode);
  evaluation.set_prefill_tokens(prefill_tokens);
  return evaluation;
}

TEST(ChunkLengthsTest, FollowTheMode) {
  EXPECT_THAT(ChunkLengths(Chunked(4), 10, 6), ElementsAre(4, 4, 2));
  EXPECT_THAT(ChunkLengths(Chunked(100), 10, 6), ElementsAre(10));
  EXPECT_THAT(ChunkLengths(WithMode(Evaluation::STEPWISE), 3, 2),
              ElementsAre(1, 1, 1));
  EXPECT_THAT(ChunkLengths(WithMode(Evaluation::EXACT_PREFILL), 8, 6),
              ElementsAre(6, 1, 1));
  EXPECT_THAT(ChunkLengths(WithMode(Evaluation::EXACT_PREFILL, 7), 8, 6),
              ElementsAre(7, 1));
  EXPECT_THAT(ChunkLengths(WithMode(Evaluation::EXACT_PREFILL, 99), 8, 6),
              ElementsAre(8));
}

TEST_F(EvaluateTest, ChunksOfOneAreStepwise) {
  EXPECT_EQ(Evaluate(Chunked(1)).SerializeAsString(),
            Evaluate(WithMode(Evaluation::STEPWISE)).SerializeAsString());
}

TEST_F(EvaluateTest, TheNumberOfThreadsChangesNoBit) {
  const std::string two = Evaluate(Chunked(32)).SerializeAsString();
  ModelSource source;
  source.set_path("embedded");
  ASSERT_OK_AND_ASSIGN(model_, LoadModel(source, 1));
  EXPECT_EQ(Evaluate(Chunked(32), 1).SerializeAsString(), two);
}

// Half precision is nearer to float than bfloat16 is; the ledger bills what
// each takes.
TEST_F(EvaluateTest, FullPrecisionIsWhatAMethodSays) {
  const CacheShape shape = model_.transformer->cache_shape();
  methods_.clear();
  for (const CachePlan::FullPrecision type :
       {CachePlan::FLOAT, CachePlan::HALF, CachePlan::BFLOAT16}) {
    Method method;
    ASSERT_OK(ParseTextProto(
        R"(name: "16bit" bit_allocator { name: "uniform" options {
             [type.googleapis.com/kvmix.UniformOptions] {
               key_bits: 16 value_bits: 16 } } }
           quantizer { name: "group_affine" }
           recency_policy { name: "none" }
           eviction_policy { name: "keep_all" })",
        "test", method));
    method.set_full_precision(type);
    ASSERT_OK_AND_ASSIGN(
        methods_.emplace_back(),
        Allocate(method, ImportanceProfile(), shape, Evaluation(), 1));
  }
  const WindowRecord record = Evaluate(Chunked(32));
  const auto kl = [&](int method) {
    double sum = 0;
    for (double x : record.method(method).kl()) sum += x;
    return sum / record.method(method).kl_size();
  };
  EXPECT_EQ(kl(0), 0);
  EXPECT_GT(kl(1), 1e-9);
  EXPECT_GT(kl(2), 8 * kl(1));  // an error 8 times as large; KL is its square
  const Ledger& exact = record.method(0).ledger();
  const Ledger& half = record.method(1).ledger();
  EXPECT_EQ(exact.key().window(), 2 * half.key().window());
  const Memory memory = SummarizeMemory({&record, 1}, 0);
  EXPECT_EQ(memory.key_effective_bits(), 32);
  EXPECT_LT(memory.compression(), 0.51);
  ASSERT_OK_AND_ASSIGN(const auto cache,
                       MakeCache(*model_.transformer, methods_[2]));
  EXPECT_EQ(AttentionKernels(*cache, AttentionArithmetic::kFloat), "bfloat16");
}

// With the method's window policy, which keeps much of a short prompt exact.
TEST_F(EvaluateTest, APlanCostsWhatItsMethodDoesMeanOverPrompts) {
  const std::vector<int32_t> tokens = window_.tokens;
  const Prompts prompts = {{tokens.begin(), tokens.begin() + 110},
                           {tokens.begin() + 40, tokens.end()}};
  const ModelPlanEvaluator evaluator(
      {.where = {.cpu = model_.transformer.get()},
       .model = "embedded",
       .prompts = [&]() -> absl::StatusOr<Prompts> { return prompts; },
       .chunk_tokens = 32},
      methods_[1], "", ImportanceProfile());
  ASSERT_OK_AND_ASSIGN(
      const std::vector<PlanLoss> losses,
      evaluator.Evaluate({methods_[1].plan, methods_[0].plan}));
  double kl = 0, difference = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    window_ = Window();
    window_.tokens = prompt;
    const WindowRecord record = Evaluate(Chunked(32));
    const int count = record.method(1).kl_size();
    for (int t = 0; t < count; ++t) {
      kl += record.method(1).kl(t) / count / 2;
      difference +=
          (record.method(1).nll(t) - record.method(0).nll(t)) / count / 2;
    }
  }
  EXPECT_GT(kl, 1e-4);
  EXPECT_NEAR(losses[0].kl_divergence, kl, 1e-12);
  EXPECT_NEAR(losses[0].loss_difference, difference, 1e-12);
  EXPECT_EQ(losses[1].kl_divergence, 0);
}

// What a profile predicts of a single KV head is what the model loses under the
// plan that quantizes it alone, when another search has that plan run; and a
// plan made of such losses tells heads apart.
TEST(TrialPlansTest, LossesOfKvHeadsAreThoseOfTheirPlans) {
  const ModelConfig config = testing::SmallConfig();
  const testing::RandomWeights weights(config);
  const auto model = testing::Load(config, weights, 2);
  const CacheShape shape = model->cache_shape();
  const Prompts prompts = {testing::RandomTokens(config, 80, 1),
                           testing::RandomTokens(config, 64, 2)};
  Method method;
  ASSERT_OK(ParseTextProto(
      R"(bit_allocator { name: "knapsack" }
         quantizer { name: "group_affine" options {
           [type.googleapis.com/kvmix.GroupAffineOptions] {
             value { group_size: 16 } } } }
         recency_policy { name: "none" }
         eviction_policy { name: "keep_all" }
         candidate { bits: 2 }
         candidate { bits: 4 }
         budget { effective_bits: 4.35 }  # five of twelve at 4 bits: an odd one
         granularity: HEAD)",
      "test", method));
  ASSERT_OK_AND_ASSIGN(const FormatChoices formats,
                       OfferedFormats(method, shape.head_dim));
  Component component;
  component.set_name("isolated_kl");
  ASSERT_OK_AND_ASSIGN(const auto estimator,
                       Registry<ImportanceEstimator>::Get().Make(
                           component, "importance_estimator"));
  ASSERT_OK(estimator->Start({.num_layers = shape.num_layers,
                              .head_dim = shape.head_dim,
                              .formats = &formats,
                              .granularity = CachePlan::HEAD,
                              .num_kv_heads = shape.num_kv_heads}));
  const WhereToRun where = {.cpu = model.get()};
  ASSERT_OK(ObservePrompts(where, prompts, *estimator, {}).status());
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());

  ASSERT_OK_AND_ASSIGN(const RunnableMethod full, FullPrecision(shape));
  std::vector<CachePlan> singles;
  std::vector<double> predicted;
  for (int i = 0; i < shape.num_layers; ++i) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      CachePlan& single = singles.emplace_back(full.plan);
      std::vector<QuantFormat> heads(shape.num_kv_heads,
                                     full.plan.layer(i).value());
      heads[head] = formats.value(1);
      SetFormats(heads, Side::kValue, *single.mutable_layer(i));
      predicted.push_back(profile.layer(i).value_head_loss(2 * head + 1));
    }
  }
  const ModelPlanEvaluator evaluator(
      {.where = where,
       .model = "small",
       .prompts = [&]() -> absl::StatusOr<Prompts> { return prompts; },
       .chunk_tokens = 32},
      full, "", profile);
  ASSERT_OK_AND_ASSIGN(const std::vector<PlanLoss> losses,
                       evaluator.Evaluate(singles));
  for (size_t i = 0; i < singles.size(); ++i) {
    EXPECT_GT(predicted[i], 0);
    EXPECT_DOUBLE_EQ(losses[i].kl_divergence, predicted[i]);
  }

  ASSERT_OK_AND_ASSIGN(const RunnableMethod heads,
                       Allocate(method, profile, shape, Evaluation(), 1));
  bool apart = false;
  for (const LayerPlan& layer : heads.plan.layer())
    apart |= HasHeadFormats(layer, Side::kKey) ||
             HasHeadFormats(layer, Side::kValue);
  EXPECT_TRUE(apart);
}

TEST_F(EvaluateTest, FullPrecisionDoesNotDependOnTheMode) {
  const WindowRecord chunked = Evaluate(Chunked(32));
  const WindowRecord whole = Evaluate(WithMode(Evaluation::EXACT_PREFILL, 999));
  for (int t = 0; t < chunked.method(0).nll_size(); ++t) {
    EXPECT_EQ(chunked.method(0).nll(t), whole.method(0).nll(t)) << t;
    EXPECT_EQ(chunked.method(0).kl(t), 0);
    // Prefill attends exact keys and values whatever the bits.
    EXPECT_EQ(whole.method(1).nll(t), whole.method(0).nll(t)) << t;
  }
}

TEST_F(EvaluateTest, ScoresAreThoseOfTheLogits) {
  const WindowRecord record = Evaluate(Chunked(64));
  ASSERT_EQ(record.method(0).nll_size(),
            static_cast<int>(window_.tokens.size()) - 1);
  ASSERT_OK_AND_ASSIGN(const auto cache,
                       MakeCache(*model_.transformer, methods_[0]));
  const Chunk chunk = {window_.tokens, cache.get(), WantLogits::kAll};
  const int vocab = model_.transformer->config().vocab_size;
  ASSERT_OK(model_.transformer->Forward(
      {&chunk, 1}, [&](int, int64_t first, int64_t rows, const float* logits) {
        for (int64_t r = 0; r < rows; ++r) {
          const size_t t = static_cast<size_t>(first + r);
          if (t + 1 == window_.tokens.size()) break;
          double sum = 0;
          const float* row = logits + r * vocab;
          for (int v = 0; v < vocab; ++v) sum += std::exp(double{row[v]});
          EXPECT_NEAR(record.method(0).nll(static_cast<int>(t)),
                      std::log(sum) - row[window_.tokens[t + 1]], 1e-5);
        }
        return absl::OkStatus();
      }));
}

TEST_F(EvaluateTest, TwoBitsDiverge) {
  const WindowRecord record = Evaluate(Chunked(32));
  double kl = 0;
  for (double value : record.method(1).kl()) kl += value;
  EXPECT_GT(kl, 0);
  EXPECT_GT(record.method(1).ledger().key().codes(), 0);
  EXPECT_EQ(record.method(0).ledger().key().codes(), 0);
  // K and V, 12 layers, 1 KV head, 64 channels, 2 bytes.
  EXPECT_EQ(record.method(0).ledger().fp16_bytes(),
            2 * 12 * 64 * 2 * static_cast<int64_t>(window_.tokens.size()));
}

TEST_F(EvaluateTest, StopsBetweenChunks) {
  const std::atomic<bool> stop = true;
  ThreadPool threads(1);
  EXPECT_THAT(EvaluateWindow({.cpu = model_.transformer.get()}, methods_,
                             window_, Chunked(32), threads, &stop),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("interrupted")));
}

}  // namespace
}  // namespace kvmix
