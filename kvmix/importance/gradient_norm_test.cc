#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/gradient_norm.pb.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<std::unique_ptr<ImportanceEstimator>> Make(
    const GradientNormOptions& options = {}) {
  Component component;
  component.set_name("gradient_norm");
  component.mutable_options()->PackFrom(options);
  return Registry<ImportanceEstimator>::Get().Make(component,
                                                   "importance_estimator");
}

// G = 1, D = 2, C = 3.
LayerTrace Trace(int prompt, int layer, const std::vector<float>& key_gradient,
                 const std::vector<float>& value_gradient) {
  return {.prompt = prompt,
          .layer = layer,
          .num_tokens = 10,
          .num_kv_heads = 1,
          .head_dim = 2,
          .hidden_size = 3,
          .key_projection_gradient = key_gradient.data(),
          .value_projection_gradient = value_gradient.data()};
}

TEST(GradientNormTest, IsTheMeanFrobeniusNormOverPrompts) {
  ASSERT_OK_AND_ASSIGN(auto estimator, Make());
  ASSERT_OK(estimator->Start({.num_layers = 2}));
  const std::vector<float> zero(6, 0.0f);
  const std::vector<float> five = {3, 0, 0, -4, 0, 0};
  const std::vector<float> seven = {2, 3, 6, 0, 0, 0};
  const std::vector<float> nine = {1, 4, 8, 0, 0, 0};
  ASSERT_OK(estimator->Observe(Trace(0, 1, five, zero)));
  ASSERT_OK(estimator->Observe(Trace(0, 0, seven, nine)));
  ASSERT_OK(estimator->Observe(Trace(1, 1, nine, zero)));
  ASSERT_OK(estimator->Observe(Trace(1, 0, seven, five)));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
  EXPECT_EQ(profile.num_prompts(), 2);
  EXPECT_EQ(profile.num_tokens(), 20);
  EXPECT_EQ(profile.unit(), ImportanceProfile::RANK_ONLY);
  EXPECT_DOUBLE_EQ(profile.layer(0).key(), 7);
  EXPECT_DOUBLE_EQ(profile.layer(0).value(), 7);
  EXPECT_DOUBLE_EQ(profile.layer(1).key(), 7);
  EXPECT_DOUBLE_EQ(profile.layer(1).value(), 0);
  // The standard error of two numbers is half of their distance.
  EXPECT_DOUBLE_EQ(profile.layer(0).key_stderr(), 0);
  EXPECT_DOUBLE_EQ(profile.layer(0).value_stderr(), 2);
  EXPECT_DOUBLE_EQ(profile.layer(1).key_stderr(), 2);
}

// In float the sum stops growing at 2^24.
TEST(GradientNormTest, SumsInDouble) {
  constexpr int kSize = 1 << 25;
  const std::vector<float> ones(kSize, 1.0f);
  ASSERT_OK_AND_ASSIGN(auto estimator, Make());
  ASSERT_OK(estimator->Start({.num_layers = 1}));
  LayerTrace trace = Trace(0, 0, ones, ones);
  trace.hidden_size = kSize / 2;
  ASSERT_OK(estimator->Observe(trace));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
  EXPECT_DOUBLE_EQ(profile.layer(0).key(), std::sqrt(kSize));
}

TEST(GradientNormTest, OnePromptHasNoStandardError) {
  ASSERT_OK_AND_ASSIGN(auto estimator, Make());
  ASSERT_OK(estimator->Start({.num_layers = 1}));
  const std::vector<float> ones(6, 1.0f);
  ASSERT_OK(estimator->Observe(Trace(0, 0, ones, ones)));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
  EXPECT_EQ(profile.layer(0).key_stderr(), 0);
}

TEST(GradientNormTest, AGradientThatIsNotFiniteNamesPromptAndLayer) {
  ASSERT_OK_AND_ASSIGN(auto estimator, Make());
  ASSERT_OK(estimator->Start({.num_layers = 4}));
  const std::vector<float> ones(6, 1.0f);
  const std::vector<float> nan(6, std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(estimator->Observe(Trace(2, 3, ones, nan)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("prompt 2, layer 3: value score is nan")));
}

TEST(GradientNormTest, ALayerThatMissedAPromptIsAnError) {
  ASSERT_OK_AND_ASSIGN(auto estimator, Make());
  ASSERT_OK(estimator->Start({.num_layers = 2}));
  const std::vector<float> ones(6, 1.0f);
  ASSERT_OK(estimator->Observe(Trace(0, 0, ones, ones)));
  ASSERT_OK(estimator->Observe(Trace(1, 0, ones, ones)));
  ASSERT_OK(estimator->Observe(Trace(0, 1, ones, ones)));
  EXPECT_THAT(estimator->Finish().status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("layer 1 was observed on 1 prompts and layer "
                                 "0 on 2")));
}

TEST(GradientNormTest, LabelShiftIsOneUnlessTheReleasedCodeIsAskedFor) {
  GradientNormOptions options;
  EXPECT_EQ((*Make(options))->LabelShift(), 1);
  options.set_label_shift(2);
  EXPECT_EQ((*Make(options))->LabelShift(), 2);
  options.set_label_shift(3);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("importance_estimator \"gradient_norm\": "
                                 "options.label_shift is 3 but must be in "
                                 "[1, 2]")));
}

}  // namespace
}  // namespace kvmix
