// Control: every layer matters equally. It looks at no prompt.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/control_estimator.h"

namespace kvmix {
namespace {

class UniformImportance final : public ControlEstimator {
 public:
  UniformImportance() : ControlEstimator("uniform") {}

 protected:
  void SetScores(const ProfileContext&, int,
                 LayerImportance& scores) const override {
    scores.set_key(1);
    scores.set_value(1);
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "uniform", "control: the same score for every layer",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<UniformImportance>();
    });

}  // namespace
}  // namespace kvmix
