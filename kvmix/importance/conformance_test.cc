// The laws that every importance estimator keeps, checked for all that are
// linked.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

constexpr int kNumLayers = 6;
constexpr int kNumPrompts = 3;

// Two formats for keys and values each, and full precision.
FormatChoices Formats() {
  FormatChoices formats;
  for (int bits : {2, 4}) {
    QuantFormat* format = formats.add_key();
    format->set_quantizer("group_affine");
    format->set_bits(bits);
    format->set_group_size(4);
    format->set_axis(QuantFormat::PER_CHANNEL);
    *formats.add_value() = *format;
    formats.mutable_value()->rbegin()->set_axis(QuantFormat::PER_TOKEN);
  }
  formats.add_key()->set_bits(16);
  formats.add_value()->set_bits(16);
  return formats;
}

// A LayerTrace with every signal, of random numbers whose scale depends on the
// layer.
struct RandomTrace {
  RandomTrace(int prompt, int layer) {
    trace = {.prompt = prompt,
             .layer = layer,
             .num_tokens = 5,
             .num_heads = 4,
             .num_kv_heads = 2,
             .head_dim = 8,
             .hidden_size = 3};
    CounterRandom random(/*seed=*/1, /*stream=*/100 * prompt + layer);
    for (auto* data : {&key, &value, &key_gradient, &value_gradient}) {
      for (int i = 0; i < 5 * 2 * 8; ++i)
        data->push_back(static_cast<float>((1 + layer) * random.Normal()));
    }
    for (int i = 0; i < 5 * 4 * 8; ++i)
      query.push_back(static_cast<float>(random.Normal()));
    trace.query_states = query.data();
    trace.key_states = key.data();
    trace.value_states = value.data();
    trace.key_state_gradient = key_gradient.data();
    trace.value_state_gradient = value_gradient.data();
    // [G * D, C] = [16, 3] is smaller than [T, G, D] = [5, 2, 8].
    trace.key_projection_gradient = key_gradient.data();
    trace.value_projection_gradient = value_gradient.data();
    trace.key_projection = key.data();
    trace.value_projection = value.data();
  }
  std::vector<float> query, key, value, key_gradient, value_gradient;
  LayerTrace trace;
};

class ImportanceEstimatorConformanceTest
    : public ::testing::TestWithParam<std::string> {
 protected:
  static std::unique_ptr<ImportanceEstimator> Make(const std::string& name) {
    Component component;
    component.set_name(name);
    auto made = Registry<ImportanceEstimator>::Get().Make(
        component, "importance_estimator");
    EXPECT_OK(made);
    return made.ok() ? *std::move(made) : nullptr;
  }

  static absl::Status Start(
      ImportanceEstimator& estimator, int num_layers, uint64_t seed,
      const FormatChoices& formats,
      CachePlan::Granularity granularity = CachePlan::LAYER) {
    return estimator.Start(
        {.num_layers = num_layers,
         .seed = seed,
         .head_dim = 8,
         .formats = estimator.NeedsFormats() ? &formats : nullptr,
         .granularity = granularity,
         .num_kv_heads = 2});
  }

  // What the estimator asks for of one prompt.
  static absl::Status Show(ImportanceEstimator& estimator, int prompt,
                           const std::vector<int>& order) {
    if (!estimator.RequiredSignals().empty()) {
      for (int layer : order) {
        RandomTrace random(prompt, layer);
        KVMIX_RETURN_IF_ERROR(estimator.Observe(random.trace));
      }
    }
    const int num_plans = static_cast<int>(estimator.TrialPlans().size());
    for (int plan = 0; plan < num_plans; ++plan) {
      CounterRandom random(/*seed=*/2, /*stream=*/1000 * prompt + plan);
      KVMIX_RETURN_IF_ERROR(
          estimator.ObserveTrial({.plan = plan,
                                  .prompt = prompt,
                                  .num_tokens = 5,
                                  .loss_difference = random.Normal(),
                                  .kl_divergence = random.Uniform()}));
    }
    return absl::OkStatus();
  }

  // Shows kNumPrompts prompts, layers in the order given.
  static absl::StatusOr<ImportanceProfile> Profile(
      const std::vector<int>& order,
      CachePlan::Granularity granularity = CachePlan::LAYER) {
    auto estimator = Make(GetParam());
    const FormatChoices formats = Formats();
    KVMIX_RETURN_IF_ERROR(
        Start(*estimator, kNumLayers, /*seed=*/7, formats, granularity));
    for (int prompt = 0; prompt < kNumPrompts; ++prompt)
      KVMIX_RETURN_IF_ERROR(Show(*estimator, prompt, order));
    return estimator->Finish();
  }
};

TEST_P(ImportanceEstimatorConformanceTest,
       ScoresAreFiniteAndNonNegativeOnePerLayer) {
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile,
                       Profile({0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(profile.estimator(), GetParam());
  EXPECT_NE(profile.unit(), ImportanceProfile::UNIT_UNSPECIFIED);
  ASSERT_EQ(profile.layer_size(), kNumLayers);
  for (const LayerImportance& layer : profile.layer()) {
    for (double score : {layer.key(), layer.value(), layer.key_stderr(),
                         layer.value_stderr()}) {
      EXPECT_TRUE(std::isfinite(score));
      EXPECT_GE(score, 0);
    }
  }
}

TEST_P(ImportanceEstimatorConformanceTest,
       LossesAreThereIfFormatsWereAskedFor) {
  const bool needs_formats = Make(GetParam())->NeedsFormats();
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile,
                       Profile({0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(profile.has_formats(), needs_formats);
  if (!needs_formats) return;
  EXPECT_EQ(profile.formats().SerializeAsString(),
            Formats().SerializeAsString());
  for (const LayerImportance& layer : profile.layer()) {
    for (const auto* losses : {&layer.key_loss(), &layer.value_loss()}) {
      ASSERT_EQ(losses->size(), 3);
      for (double loss : *losses) {
        EXPECT_TRUE(std::isfinite(loss));
        EXPECT_GE(loss, 0);
      }
      EXPECT_EQ(losses->Get(2), 0);  // full precision
    }
    EXPECT_EQ(layer.key(), layer.key_loss(0));
    EXPECT_EQ(layer.value(), layer.value_loss(0));
  }
}

TEST_P(ImportanceEstimatorConformanceTest, HeadsAreThereForAllOrForNone) {
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile,
                       Profile({0, 1, 2, 3, 4, 5}));
  for (const LayerImportance& layer : profile.layer()) {
    EXPECT_EQ(layer.key_head_size(), profile.layer(0).key_head_size());
    EXPECT_EQ(layer.value_head_size(), layer.key_head_size());
    EXPECT_TRUE(layer.key_head_size() == 0 || layer.key_head_size() == 2);
    for (const auto* heads : {&layer.key_head(), &layer.value_head()}) {
      for (double head : *heads) {
        EXPECT_TRUE(std::isfinite(head));
        EXPECT_GE(head, 0);
      }
    }
  }
}

// Of the losses of every KV head the first are its scores, and what is said of
// layers is what is said of them without.
TEST_P(ImportanceEstimatorConformanceTest, LossesOfKvHeadsAreThereIfAskedFor) {
  ASSERT_OK_AND_ASSIGN(ImportanceProfile profile,
                       Profile({0, 1, 2, 3, 4, 5}, CachePlan::HEAD));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile layers,
                       Profile({0, 1, 2, 3, 4, 5}));
  const bool formats = Make(GetParam())->NeedsFormats();
  const bool trials = Make(GetParam())->NeedsTrials();
  for (int i = 0; i < kNumLayers; ++i) {
    EXPECT_EQ(layers.layer(i).key_head_loss_size(), 0);
    LayerImportance& layer = *profile.mutable_layer(i);
    for (const auto& [heads, losses] :
         {std::pair(&layer.key_head(), &layer.key_head_loss()),
          std::pair(&layer.value_head(), &layer.value_head_loss())}) {
      ASSERT_EQ(losses->size(), formats ? 2 * 3 : 0);
      if (!formats) continue;
      ASSERT_EQ(heads->size(), 2);
      for (int head = 0; head < 2; ++head) {
        EXPECT_EQ(losses->Get(3 * head), heads->Get(head));
        EXPECT_GE(losses->Get(3 * head + 1), 0);
        EXPECT_EQ(losses->Get(3 * head + 2), 0);  // full precision
      }
    }
    layer.clear_key_head_loss();
    layer.clear_value_head_loss();
    if (trials) continue;  // random costs of other trials
    EXPECT_EQ(layer.SerializeAsString(), layers.layer(i).SerializeAsString());
  }
}

TEST_P(ImportanceEstimatorConformanceTest, EveryPromptHasItsScores) {
  const bool looks_at_prompts = Make(GetParam())->NeedsModel();
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile,
                       Profile({0, 1, 2, 3, 4, 5}));
  for (const LayerImportance& layer : profile.layer()) {
    const int expected = looks_at_prompts ? kNumPrompts : 0;
    EXPECT_EQ(layer.key_by_prompt_size(), expected);
    EXPECT_EQ(layer.value_by_prompt_size(), expected);
  }
}

TEST_P(ImportanceEstimatorConformanceTest, SameInputGivesTheSameProfile) {
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile a, Profile({0, 1, 2, 3, 4, 5}));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile b, Profile({0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(a.SerializeAsString(), b.SerializeAsString());
}

TEST_P(ImportanceEstimatorConformanceTest, OrderOfLayersDoesNotMatter) {
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile a, Profile({0, 1, 2, 3, 4, 5}));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile b, Profile({5, 2, 4, 0, 1, 3}));
  EXPECT_EQ(a.SerializeAsString(), b.SerializeAsString());
}

TEST_P(ImportanceEstimatorConformanceTest, AMissingLayerIsAnErrorIfItIsNeeded) {
  auto estimator = Make(GetParam());
  if (estimator->RequiredSignals().empty()) GTEST_SKIP() << "needs no traces";
  EXPECT_FALSE(Profile({0, 1, 2, 4, 5}).ok());
}

TEST_P(ImportanceEstimatorConformanceTest, StartForgetsWhatWasObserved) {
  auto estimator = Make(GetParam());
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile fresh,
                       Profile({0, 1, 2, 3, 4, 5}));
  const FormatChoices formats = Formats();
  ASSERT_OK(Start(*estimator, 9, /*seed=*/8, formats));
  ASSERT_OK(Show(*estimator, /*prompt=*/0, {8}));
  ASSERT_OK(Start(*estimator, kNumLayers, /*seed=*/7, formats));
  for (int prompt = 0; prompt < kNumPrompts; ++prompt)
    ASSERT_OK(Show(*estimator, prompt, {0, 1, 2, 3, 4, 5}));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile again, estimator->Finish());
  EXPECT_EQ(again.SerializeAsString(), fresh.SerializeAsString());
}

TEST_P(ImportanceEstimatorConformanceTest, OptionsOfAnotherTypeAreRefused) {
  Component component;
  component.set_name(GetParam());
  Component other;
  component.mutable_options()->PackFrom(other);
  EXPECT_THAT(Registry<ImportanceEstimator>::Get()
                  .Make(component, "importance_estimator")
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("but the config gives kvmix.Component")));
}

INSTANTIATE_TEST_SUITE_P(
    Linked, ImportanceEstimatorConformanceTest,
    ::testing::ValuesIn(Registry<ImportanceEstimator>::Get().Names()),
    [](const auto& test) { return test.param; });

TEST(ImportanceEstimatorRegistryTest, UnknownNameListsLinkedOnes) {
  Component component;
  component.set_name("hessian_trace");
  const auto made = Registry<ImportanceEstimator>::Get().Make(
      component, "importance_estimator");
  for (const std::string& name : Registry<ImportanceEstimator>::Get().Names()) {
    EXPECT_THAT(made.status(),
                StatusIs(absl::StatusCode::kNotFound, HasSubstr(name)));
  }
}

}  // namespace
}  // namespace kvmix
