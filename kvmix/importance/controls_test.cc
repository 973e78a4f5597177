#include <cstdint>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

ImportanceProfile Profile(const std::string& name, uint64_t seed) {
  Component component;
  component.set_name(name);
  auto estimator = *Registry<ImportanceEstimator>::Get().Make(
      component, "importance_estimator");
  EXPECT_OK(estimator->Start({.num_layers = 32, .seed = seed}));
  return *estimator->Finish();
}

TEST(RandomImportanceTest, IsAFunctionOfTheSeed) {
  const ImportanceProfile a = Profile("random", 1);
  EXPECT_EQ(a.SerializeAsString(), Profile("random", 1).SerializeAsString());
  EXPECT_NE(a.SerializeAsString(), Profile("random", 2).SerializeAsString());
}

TEST(RandomImportanceTest, KeysAndValuesOfAllLayersDiffer) {
  std::set<double> scores;
  const ImportanceProfile profile = Profile("random", 1);
  for (const LayerImportance& layer : profile.layer()) {
    scores.insert(layer.key());
    scores.insert(layer.value());
  }
  EXPECT_EQ(scores.size(), 64);
}

TEST(UniformImportanceTest, AllLayersScoreTheSame) {
  const ImportanceProfile profile = Profile("uniform", 1);
  for (const LayerImportance& layer : profile.layer()) {
    EXPECT_EQ(layer.key(), 1);
    EXPECT_EQ(layer.value(), 1);
  }
}

}  // namespace
}  // namespace kvmix
