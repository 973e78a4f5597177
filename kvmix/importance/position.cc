// Control: layers matter the more the nearer they lie to either end of the
// model,
//   score = 1 / (1 + layers between it and the nearer end)
// as deployed systems keep the first and the last layers in full precision
// (llama.cpp, vLLM's skip lists). It looks at no prompt.
#include <algorithm>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/control_estimator.h"

namespace kvmix {
namespace {

class Position final : public ControlEstimator {
 public:
  Position() : ControlEstimator("position") {}

 protected:
  void SetScores(const ProfileContext& context, int layer,
                 LayerImportance& scores) const override {
    const double score =
        1.0 / (1 + std::min(layer, context.num_layers - 1 - layer));
    scores.set_key(score);
    scores.set_value(score);
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "position", "control: layers near either end of the model matter most",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<Position>();
    });

}  // namespace
}  // namespace kvmix
