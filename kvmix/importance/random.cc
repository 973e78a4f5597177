// Control: scores drawn uniformly from [0, 1), what an uninformed ranking is
// worth. A function of the experiment's seed alone; it looks at no prompt.
#include "kvmix/base/random.h"

#include <cstdint>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/control_estimator.h"

namespace kvmix {
namespace {

// Streams far from those that number documents or prompts.
constexpr uint64_t kFirstStream = uint64_t{1} << 48;

class RandomImportance final : public ControlEstimator {
 public:
  RandomImportance() : ControlEstimator("random") {}

 protected:
  void SetScores(const ProfileContext& context, int layer,
                 LayerImportance& scores) const override {
    CounterRandom random(context.seed, kFirstStream + layer);
    scores.set_key(random.Uniform());
    scores.set_value(random.Uniform());
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "random", "control: seeded random scores",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<RandomImportance>();
    });

}  // namespace
}  // namespace kvmix
