// The mean L2 norm of a layer's values, for keys and values alike: what a wrong
// attention weight, or a wrong value, adds to the output grows with them.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {
namespace {

class ValueNorm final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {Signal::kValueStates}; }

  absl::Status Start(const ProfileContext& context) override {
    scores_ = ScoreAccumulator(context.num_layers);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace& trace) override {
    LayerScores scores;
    scores.value_heads = MeanNormsOfHeads(trace.value_states, trace.num_tokens,
                                          trace.num_kv_heads, trace.head_dim);
    scores.value = Sum(scores.value_heads) / trace.num_kv_heads;
    scores.key = scores.value;
    scores.key_heads = scores.value_heads;
    return scores_.Add(trace, scores);
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return scores_.Profile("value_norm", ImportanceProfile::RANK_ONLY);
  }

 private:
  ScoreAccumulator scores_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "value_norm", "mean L2 norm of the values",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<ValueNorm>();
    });

}  // namespace
}  // namespace kvmix
