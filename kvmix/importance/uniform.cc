// Control: every layer matters equally. It looks at no prompt.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

class UniformImportance final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {}; }

  absl::Status Start(const ProfileContext& context) override {
    num_layers_ = context.num_layers;
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }

  absl::StatusOr<ImportanceProfile> Finish() override {
    ImportanceProfile profile;
    profile.set_estimator("uniform");
    profile.set_unit(ImportanceProfile::RANK_ONLY);
    for (int i = 0; i < num_layers_; ++i) {
      LayerImportance* layer = profile.add_layer();
      layer->set_key(1);
      layer->set_value(1);
    }
    return profile;
  }

 private:
  int num_layers_ = 0;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "uniform", "control: the same score for every layer",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<UniformImportance>();
    });

}  // namespace
}  // namespace kvmix
