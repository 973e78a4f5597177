// Control: scores drawn uniformly from [0, 1), what an uninformed ranking is
// worth. A function of the experiment's seed alone; it looks at no prompt.
#include "kvmix/base/random.h"

#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

class RandomImportance final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {}; }

  absl::Status Start(const ProfileContext& context) override {
    context_ = context;
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace&) override { return absl::OkStatus(); }

  absl::StatusOr<ImportanceProfile> Finish() override {
    ImportanceProfile profile;
    profile.set_estimator("random");
    profile.set_unit(ImportanceProfile::RANK_ONLY);
    // Streams far from those that number documents or prompts.
    constexpr uint64_t kFirstStream = uint64_t{1} << 48;
    for (int i = 0; i < context_.num_layers; ++i) {
      CounterRandom random(context_.seed, kFirstStream + i);
      LayerImportance* layer = profile.add_layer();
      layer->set_key(random.Uniform());
      layer->set_value(random.Uniform());
    }
    return profile;
  }

 private:
  ProfileContext context_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "random", "control: seeded random scores",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<RandomImportance>();
    });

}  // namespace
}  // namespace kvmix
