// What quantizing one layer's keys (values) alone does to the model's answers:
// the KL divergence of its next-token distribution from full precision's, for
// every format offered, averaged over tokens and prompts. NVIDIA's
// Model-Optimizer chooses formats of KV caches by it (layer-wise AutoQuant).
// Needs one forward pass for every layer, side and format.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/trial_estimator.h"

namespace kvmix {
namespace {

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "isolated_kl", "KL divergence with one layer's keys or values quantized",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<TrialEstimator>(
          "isolated_kl", SingleChangeTrials::Base::kFullPrecision,
          &TrialResult::kl_divergence);
    });

}  // namespace
}  // namespace kvmix
