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

// A LayerTrace with every signal, of random numbers whose scale depends on the
// layer.
struct RandomTrace {
  RandomTrace(int prompt, int layer) {
    trace = {.prompt = prompt,
             .layer = layer,
             .num_tokens = 5,
             .num_kv_heads = 2,
             .head_dim = 4,
             .hidden_size = 3};
    CounterRandom random(/*seed=*/1, /*stream=*/100 * prompt + layer);
    for (auto* data : {&key, &value, &key_gradient, &value_gradient}) {
      for (int i = 0; i < 5 * 2 * 4; ++i)
        data->push_back(static_cast<float>((1 + layer) * random.Normal()));
    }
    trace.key_states = key.data();
    trace.value_states = value.data();
    trace.key_state_gradient = key_gradient.data();
    trace.value_state_gradient = value_gradient.data();
    // [G * D, C] = [8, 3] is smaller than [T, G, D] = [5, 2, 4].
    trace.key_projection_gradient = key_gradient.data();
    trace.value_projection_gradient = value_gradient.data();
  }
  std::vector<float> key, value, key_gradient, value_gradient;
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

  // Shows kNumPrompts prompts, layers in the order given.
  static absl::StatusOr<ImportanceProfile> Profile(
      const std::vector<int>& order) {
    auto estimator = Make(GetParam());
    KVMIX_RETURN_IF_ERROR(
        estimator->Start({.num_layers = kNumLayers, .seed = 7}));
    for (int prompt = 0; prompt < kNumPrompts; ++prompt) {
      for (int layer : order) {
        RandomTrace random(prompt, layer);
        KVMIX_RETURN_IF_ERROR(estimator->Observe(random.trace));
      }
    }
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
  ASSERT_OK(estimator->Start({.num_layers = 9, .seed = 8}));
  RandomTrace first(0, 8);
  ASSERT_OK(estimator->Observe(first.trace));
  ASSERT_OK(estimator->Start({.num_layers = kNumLayers, .seed = 7}));
  for (int prompt = 0; prompt < kNumPrompts; ++prompt) {
    for (int layer = 0; layer < kNumLayers; ++layer) {
      RandomTrace random(prompt, layer);
      ASSERT_OK(estimator->Observe(random.trace));
    }
  }
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
