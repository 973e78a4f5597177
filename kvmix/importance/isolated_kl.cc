// What quantizing one layer's keys (values) alone does to the model's answers:
// the KL divergence of its next-token distribution from full precision's, for
// every format offered, averaged over tokens and prompts. NVIDIA's
// Model-Optimizer chooses formats of KV caches by it (layer-wise AutoQuant).
// Needs one forward pass for every layer, side and format.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/single_change_trials.h"

namespace kvmix {
namespace {

class IsolatedKl final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {}; }
  bool NeedsFormats() const override { return true; }
  bool NeedsTrials() const override { return true; }

  absl::Status Start(const ProfileContext& context) override {
    trials_ = SingleChangeTrials(context.num_layers, *context.formats,
                                 SingleChangeTrials::Base::kFullPrecision,
                                 &TrialResult::kl_divergence);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }

  std::vector<CachePlan> TrialPlans() const override { return trials_.plans(); }

  absl::Status ObserveTrial(const TrialResult& result) override {
    return trials_.Observe(result);
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return trials_.Profile("isolated_kl");
  }

 private:
  SingleChangeTrials trials_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "isolated_kl", "KL divergence with one layer's keys or values quantized",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<IsolatedKl>();
    });

}  // namespace
}  // namespace kvmix
