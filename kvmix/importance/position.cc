// Control: layers matter the more the nearer they lie to either end of the
// model,
//   score = 1 / (1 + layers between it and the nearer end)
// as deployed systems keep the first and the last layers in full precision
// (llama.cpp, vLLM's skip lists). It looks at no prompt.
#include <algorithm>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

class Position final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {}; }

  absl::Status Start(const ProfileContext& context) override {
    num_layers_ = context.num_layers;
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }

  absl::StatusOr<ImportanceProfile> Finish() override {
    ImportanceProfile profile;
    profile.set_estimator("position");
    profile.set_unit(ImportanceProfile::RANK_ONLY);
    for (int i = 0; i < num_layers_; ++i) {
      const double score = 1.0 / (1 + std::min(i, num_layers_ - 1 - i));
      LayerImportance* layer = profile.add_layer();
      layer->set_key(score);
      layer->set_value(score);
    }
    return profile;
  }

 private:
  int num_layers_ = 0;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "position", "control: layers near either end of the model matter most",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<Position>();
    });

}  // namespace
}  // namespace kvmix
