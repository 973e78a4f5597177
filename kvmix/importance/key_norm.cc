// The mean L2 norm of a layer's keys, for keys and values alike: the
// quantization error of keys grows with them, and with it the error of the
// attention's scores (KV-AdaQuant, arXiv 2502.15075, gives keys more bits by
// norms).
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {
namespace {

class KeyNorm final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override { return {Signal::kKeyStates}; }

  absl::Status Start(const ProfileContext& context) override {
    scores_ = ScoreAccumulator(context.num_layers);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace& trace) override {
    LayerScores scores;
    scores.key_heads = MeanNormsOfHeads(trace.key_states, trace.num_tokens,
                                        trace.num_kv_heads, trace.head_dim);
    scores.key = Sum(scores.key_heads) / trace.num_kv_heads;
    scores.value = scores.key;
    scores.value_heads = scores.key_heads;
    return scores_.Add(trace, scores);
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return scores_.Profile("key_norm", ImportanceProfile::RANK_ONLY);
  }

 private:
  ScoreAccumulator scores_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "key_norm", "mean L2 norm of the keys",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<KeyNorm>();
    });

}  // namespace
}  // namespace kvmix
